/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* lb.h - from a frontend to one of its backends. */
#ifndef MST_LB_H
#define MST_LB_H

#include "addr.h"
#include "maps.h"

#define LB_TRIES 16 /* slots looked at for a backend that listens */

/* The head of addr if it is a VIP. */
static __always_inline const struct mst_service *
lb_head(struct mst_service_key *key, const struct mst_addr *addr)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->addr = *addr;
	return bpf_map_lookup_elem(&mst_services_v1, key);
}

/*
 * The service at port and proto of the VIP in key, most specific first. key
 * is left at the frontend found, which is what its slots are looked up by.
 */
static __always_inline const struct mst_service *
lb_service(struct mst_service_key *key, const struct mst_service *head,
	   __be16 port, __u8 proto)
{
	const struct mst_service *svc;

	key->port = port;
	key->proto = proto;
	svc = bpf_map_lookup_elem(&mst_services_v1, key);
	if (svc)
		return svc;
	key->proto = 0;
	svc = bpf_map_lookup_elem(&mst_services_v1, key);
	if (svc)
		return svc;
	key->port = 0;
	return head;
}

/* Is addr one of the host's own? */
static __always_inline bool lb_is_host(const struct mst_addr *addr)
{
	const struct mst_endpoint *ep;

	ep = bpf_map_lookup_elem(&mst_endpoints_v1, addr);
	return ep && ep->flags & MST_EP_HOST;
}

/*
 * Does the address belong to a container behind a host end of ours or on a
 * private parent, or to the host? Nobody outside has it.
 */
static __always_inline bool is_inside(const struct mst_addr *addr)
{
	const struct mst_endpoint *ep;

	ep = bpf_map_lookup_elem(&mst_endpoints_v1, addr);
	return ep && (ep->flags & (MST_EP_HOST | MST_EP_REDIRECT) ||
		      (ep->via && !ep->parent));
}

/*
 * The service published at port and proto of addr, or, with any, of all the
 * host's addresses of its family. key is left at its frontend.
 */
static __always_inline const struct mst_service *
lb_published(struct mst_service_key *key, const struct mst_addr *addr,
	     __be16 port, __u8 proto, bool any)
{
	const struct mst_service *svc;

	__builtin_memset(key, 0, sizeof(*key));
	key->addr = *addr;
	key->port = port;
	key->proto = proto;
	svc = bpf_map_lookup_elem(&mst_services_v1, key);
	if (!svc && any) {
		key->addr.w[0] = 0;
		key->addr.w[1] = 0;
		key->addr.w[2] = addr_is4(addr) ? V4_MAPPED : 0;
		key->addr.w[3] = 0;
		svc = bpf_map_lookup_elem(&mst_services_v1, key);
	}
	return svc && svc->flags & MST_SVC_PUBLISHED ? svc : NULL;
}

struct lb_bind {
	struct mst_service_key key;
	__be16 port;
	__u8 proto;
	bool v6;
	bool taken;
};

static long lb_bind_at(void *map, const __u32 *ifindex,
		       const struct mst_uplink *uplink, struct lb_bind *b)
{
	b->taken = lb_published(&b->key, &uplink->snat4, b->port, b->proto,
				false) ||
		   (b->v6 && lb_published(&b->key, &uplink->snat6, b->port,
					  b->proto, false));
	return b->taken;
}

/*
 * Would a socket of the host's at addr have a port that is published? One at
 * all addresses would at those of the uplinks, too, and at [::] in both
 * families: whether it wants IPv6 alone is not to be seen when it binds.
 */
static __always_inline bool lb_taken(const struct mst_addr *addr, __be16 port,
				     __u8 proto)
{
	struct lb_bind b = {.port = port, .proto = proto};
	struct mst_addr all4 = addr4(0);

	if (lb_published(&b.key, addr, port, proto, true))
		return true;
	b.v6 = addr_zero(addr);
	if (!b.v6 && !addr_eq(addr, &all4))
		return false;
	if (b.v6 && lb_published(&b.key, &all4, port, proto, false))
		return true;
	bpf_for_each_map_elem(&mst_uplinks_v1, lb_bind_at, &b, 0);
	return b.taken;
}

/* May addr begin flows to a published service? */
static __always_inline bool lb_admits(const struct mst_service *svc,
				      const struct mst_addr *addr)
{
	struct mst_source_key key = {
		.prefixlen = MST_SOURCE_BITS + 128,
		.service = svc->id,
		.addr = *addr,
	};
	const __u8 *in;

	if (!(svc->flags & MST_SVC_RESTRICTED))
		return true;
	in = bpf_map_lookup_elem(&mst_sources_v1, &key);
	return in && *in;
}

/* Is addr in a service pool, so that it must never leave the host? */
static __always_inline bool lb_in_pool(const struct mst_addr *addr)
{
	const struct mst_config *cfg = config();

	if (!cfg)
		return false;
	return addr_in(addr, &cfg->pool4, &cfg->mask4) ||
	       addr_in(addr, &cfg->pool6, &cfg->mask6);
}

/*
 * Does anything accept TCP at the backend? Engines tell of a dead process
 * 10-170 ms after its socket closed; sock_ops knows at once. Backends whose
 * listeners are not tracked are taken at their word.
 */
static __always_inline bool lb_listens(const struct mst_backend *be,
				       __be16 port, __u8 proto)
{
	struct mst_sandbox_key skey = {.cookie = be->cookie};
	struct mst_listener_key lkey = {.cookie = be->cookie};
	const struct mst_sandbox *sb;
	const __u32 *n;

	if (proto != IPPROTO_TCP || !be->cookie)
		return true;
	sb = bpf_map_lookup_elem(&mst_sandboxes_v1, &skey);
	if (!sb || !(sb->flags & MST_SB_TRACKED))
		return true;
	lkey.port = be->port ? be->port : port;
	n = bpf_map_lookup_elem(&mst_listeners_v1, &lkey);
	return n && *n;
}

struct lb_pick {
	struct mst_service_key key; /* frontend, then slot after slot */
	__u32 slots;
	__u32 first; /* slot to begin with, from 0 */
	__u32 tries; /* among the slots; those in reserve come after them */
	__u32 id;
	bool found;
	bool listens;
	__u8 proto;
	__be16 port;
};

static long lb_try(__u32 i, struct lb_pick *pick)
{
	const struct mst_backend *be;
	const struct mst_service *slot;

	pick->key.slot = pick->slots + i - pick->tries + 1;
	if (i < pick->tries)
		pick->key.slot = (pick->first + i) % pick->slots + 1;
	slot = bpf_map_lookup_elem(&mst_services_v1, &pick->key);
	if (!slot)
		return 0;
	be = bpf_map_lookup_elem(&mst_backends_v1, &slot->backend);
	if (!be)
		return 0;
	pick->listens = lb_listens(be, pick->port, pick->proto);
	if (pick->listens || !pick->found)
		pick->id = slot->backend;
	pick->found = true;
	return pick->listens;
}

/*
 * Picks a backend for a new flow: a random slot, then the next ones until one
 * listens, then those in reserve, which are not quite gone or not quite there.
 * If none does the first is as good as any: its kernel refuses, as it would
 * have done directly. NULL if the service has no backend. On return *id is the
 * backend's.
 */
static __always_inline const struct mst_backend *
lb_select(const struct mst_service_key *key, const struct mst_service *svc,
	  __be16 port, __u8 proto, __u32 *id)
{
	struct lb_pick pick = {
		.key = *key,
		.slots = svc->count,
		.tries = svc->count < LB_TRIES ? svc->count : LB_TRIES,
		.port = port,
		.proto = proto,
	};
	__u32 reserve = svc->reserve < LB_TRIES ? svc->reserve : LB_TRIES;

	if (!pick.slots)
		return NULL;
	pick.first = bpf_get_prandom_u32() % pick.slots;
	bpf_loop(pick.tries + reserve, lb_try, &pick, 0);
	if (!pick.found)
		return NULL;
	*id = pick.id;
	return bpf_map_lookup_elem(&mst_backends_v1, id);
}

/* As lb_select, but a client with session affinity keeps the backend it had. */
static __always_inline const struct mst_backend *
lb_select_for(const struct mst_service_key *key, const struct mst_service *svc,
	      const struct mst_addr *client, __be16 port, __u8 proto, __u32 *id)
{
	struct mst_affinity_key akey = {.client = *client, .service = svc->id};
	struct mst_affinity a = {.seen = clock()};
	const struct mst_affinity *had;
	const struct mst_backend *be;
	__u64 keep = (__u64)svc->affinity * 1000000000ULL;

	if (!keep)
		return lb_select(key, svc, port, proto, id);
	had = bpf_map_lookup_elem(&mst_affinity_v1, &akey);
	be = NULL;
	if (had && !older(had->seen, keep)) {
		*id = had->backend;
		be = bpf_map_lookup_elem(&mst_backends_v1, id);
		if (be && !lb_listens(be, port, proto))
			be = NULL;
	}
	if (!be)
		be = lb_select(key, svc, port, proto, id);
	if (be) {
		a.backend = *id;
		bpf_map_update_elem(&mst_affinity_v1, &akey, &a, BPF_ANY);
	}
	return be;
}

#endif /* MST_LB_H */
