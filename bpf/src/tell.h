/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* tell.h - events of packets. */
#ifndef MST_TELL_H
#define MST_TELL_H

#include "event.h"
#include "parse.h"

/* Tells of a packet that is not forwarded. */
__noinline int tell_drop(struct __sk_buff *skb, __u32 kind, __u32 reason,
			 __u32 dir)
{
	struct work *w = work();
	struct mst_event *e;

	if (!w || !skb)
		return 0;
	e = event(kind, 0);
	if (!e)
		return 0;
	e->reason = reason;
	e->dir = dir;
	e->ifindex = skb->ifindex;
	/* of all else nothing has been parsed */
	if (reason != MST_REASON_VLAN &&
	    (skb->protocol == bpf_htons(ETH_P_IP) ||
	     skb->protocol == bpf_htons(ETH_P_IPV6)))
		e->t = w->p.t;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/*
 * Tells of the flow of w->p, which becomes w->now: of its beginning, or of its
 * end by either side.
 */
__noinline int tell_flow(struct __sk_buff *skb, __u32 kind, __u32 path,
			 __u32 service, __u32 backend)
{
	const struct mst_tuple *t, *now;
	struct work *w = work();
	struct mst_event *e;

	if (!w || !skb)
		return 0;
	e = event(kind, path);
	if (!e)
		return 0;
	t = &w->p.t;
	now = &w->now;
	e->ifindex = skb->ifindex;
	e->service = service;
	e->backend = backend;
	e->t.proto = t->proto;
	if (t->dir == MST_DIR_REPLY) { /* now is its way back */
		e->t.saddr = now->daddr;
		e->t.sport = now->dport;
		e->t.daddr = path == MST_PATH_EGRESS ? t->saddr : now->saddr;
		e->t.dport = path == MST_PATH_EGRESS ? t->sport : now->sport;
		e->to = path == MST_PATH_EGRESS ? t->daddr : t->saddr;
		e->port = path == MST_PATH_EGRESS ? t->dport : t->sport;
	} else {
		e->t.saddr = t->saddr;
		e->t.sport = t->sport;
		e->t.daddr = t->daddr;
		e->t.dport = t->dport;
		e->to = path == MST_PATH_EGRESS ? now->saddr : now->daddr;
		e->port = path == MST_PATH_EGRESS ? now->sport : now->dport;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/*
 * Does w->p end its flow? Who began it has closed it, or either side has
 * reset it.
 */
static __always_inline bool ends(const struct pkt *p)
{
	return p->ends &&
	       (p->t.dir == MST_DIR_REQUEST || p->tcp_flags & TCP_RST);
}

#endif /* MST_TELL_H */
