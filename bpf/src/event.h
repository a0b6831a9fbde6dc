/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* event.h - what mst_events gets while somebody watches. */
#ifndef MST_EVENT_H
#define MST_EVENT_H

#include "maps.h"

/* Does anybody read mst_events? */
static __always_inline bool watched(void)
{
	const struct mst_config *cfg = config();

	return cfg && cfg->events && (__s64)(cfg->events - clock()) > 0;
}

/*
 * A new event, to be filled and submitted; NULL if there is no room, which is
 * counted: a flood must stop neither the machine nor who watches.
 */
static __always_inline struct mst_event *event(__u8 kind, __u8 path)
{
	__u64 now = clock(), window = now >> 27;
	struct mst_event_rate *rate;
	struct mst_event *e;
	__u32 zero = 0;

	rate = bpf_map_lookup_elem(&mst_event_rate_v1, &zero);
	if (!rate)
		return NULL;
	if (rate->window != window) {
		rate->window = window;
		rate->sent = 0;
	}
	if (++rate->sent > EVENTS_MAX) {
		rate->lost++;
		return NULL;
	}
	e = bpf_ringbuf_reserve(&mst_events_v1, sizeof(*e), 0);
	if (!e) {
		rate->lost++;
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = now;
	e->kind = kind;
	e->path = path;
	return e;
}

#endif /* MST_EVENT_H */
