/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * maps.h - the pinned maps, one set for the host.
 *
 * Names end in the version of their layout; libbpf (tc) and mustang pin them
 * under the same name. Sizes are constants of the layout: a loader refuses to
 * reuse a pin of another size.
 */
#ifndef MST_MAPS_H
#define MST_MAPS_H

#include "bpf.h"
#include "mst.h"

/* Frontends and their slots. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct mst_service_key);
	__type(value, struct mst_service);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_services_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct mst_backend);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_backends_v1 SEC(".maps");

/*
 * Counters by service and backend. When it is full, pairs that are new are not
 * counted until the daemon has collected those of backends that are gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct mst_traffic_key);
	__type(value, struct mst_traffic);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_traffic_v1 SEC(".maps");

/* Who may reach restricted services (1), and who in there may not (0). */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct mst_source_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_sources_v1 SEC(".maps");

/* Session affinity; an evicted client just picks anew. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct mst_affinity_key);
	__type(value, struct mst_affinity);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_affinity_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct mst_addr);
	__type(value, struct mst_endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_endpoints_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct mst_interface);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_interfaces_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct mst_sandbox_key);
	__type(value, struct mst_sandbox);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_sandboxes_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct mst_listener_key);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_listeners_v1 SEC(".maps");

/* Two entries a flow, one each way; the oldest flows go when it is full. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072);
	__type(key, struct mst_tuple);
	__type(value, struct mst_ct);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_ct_v2 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct mst_tuple);
	__type(value, struct mst_ct);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_snat_v2 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_quotas_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct mst_uplink);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_uplinks_v1 SEC(".maps");

/*
 * When a packet was last translated (ns, CLOCK_MONOTONIC; 0: never). Where
 * all is balanced when sockets connect, no packet pays for conntrack.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_translated_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct mst_frag_key);
	__type(value, struct mst_frag);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_frags_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mst_config);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_config_v2 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct mst_metric_key);
	__type(value, struct mst_metric);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_metrics_v1 SEC(".maps");

/* What happens, for one reader. Big enough for 0.1 s of a flood. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 262144);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_events_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mst_event_rate);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_event_rate_v1 SEC(".maps");

static __always_inline const struct mst_config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&mst_config_v2, &zero);
}

/*
 * ns, CLOCK_MONOTONIC, as of the last tick: a few ms late, for a tenth of the
 * time that asking the hardware takes. Nothing here ends in less than seconds.
 */
static __always_inline __u64 clock(void)
{
	return bpf_ktime_get_coarse_ns();
}

/*
 * Has it been longer than limit ns since then? Another CPU may have written
 * then after we read the clock: that is now, not an age ago.
 */
static __always_inline bool older(__u64 then, __u64 limit)
{
	return (__s64)(clock() - then) > (__s64)limit;
}

/* Counts one refusal; reasons are listed by `mustang status`. */
static __noinline void count(__u32 reason, __u32 dir, __u32 ifindex,
			     __u32 bytes)
{
	struct mst_metric_key key = {
		.reason = reason,
		.dir = dir,
		.ifindex = ifindex,
	};
	struct mst_metric *m, one = {.packets = 1, .bytes = bytes};

	m = bpf_map_lookup_elem(&mst_metrics_v1, &key);
	if (!m &&
	    bpf_map_update_elem(&mst_metrics_v1, &key, &one, BPF_NOEXIST) == 0)
		return;
	if (!m) {
		key.ifindex = 0;
		m = bpf_map_lookup_elem(&mst_metrics_v1, &key);
		if (!m) {
			bpf_map_update_elem(&mst_metrics_v1, &key, &one,
					    BPF_ANY);
			return;
		}
	}
	m->packets++;
	m->bytes += bytes;
}

/* Adds to what a backend has got of a service. */
static __noinline void traffic(__u32 service, __u32 backend, __u32 connections,
			       __u64 to, __u64 from)
{
	struct mst_traffic_key key = {
		.service = service,
		.backend = backend,
	};
	struct mst_traffic *t, first = {
				       .connections = connections,
				       .to_backend = to,
				       .from_backend = from,
			       };

	if (!service)
		return;
	t = bpf_map_lookup_elem(&mst_traffic_v1, &key);
	if (!t) {
		bpf_map_update_elem(&mst_traffic_v1, &key, &first, BPF_NOEXIST);
		return;
	}
	t->connections += connections;
	t->to_backend += to;
	t->from_backend += from;
}

#endif /* MST_MAPS_H */
