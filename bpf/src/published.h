/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * published.h - flows to published ports, and to containers at their own
 * address.
 *
 * A published port of the host's is a service at one of its addresses, or at
 * all of them. One at a container's own address (gateway_mode routed) is a
 * service there whose only backend is that container: nothing is translated,
 * but the flow is entered, so that the answers leave as they are. With
 * gateway_mode nat-unprotected a container needs no service: MST_EP_OPEN lets
 * every flow in from outside.
 */
#ifndef MST_PUBLISHED_H
#define MST_PUBLISHED_H

#include "svc.h"

/*
 * Is a packet that parse() refused for the host? Its stack may make more of
 * it: it puts fragments together whose head has no ports (RFC 1858), and looks
 * through more headers. What comes of that nobody has judged.
 */
static __always_inline bool evades(const struct work *w)
{
	return lb_is_host(&w->p.t.daddr);
}

/* Begins a flow to svc, or without one to where it goes; 0 or a reason. */
static __always_inline __u32 published_flow(struct __sk_buff *skb,
					    struct work *w,
					    const struct mst_service *svc)
{
	__u32 reason;

	if (w->place == PLACE_UPLINK && is_inside(&w->p.t.saddr))
		return MST_REASON_SPOOFED;
	if (svc && !lb_admits(svc, &w->p.t.saddr))
		return MST_REASON_SOURCE;
	if (svc)
		return svc_flow_to(skb, svc);
	w->now = w->p.t;
	frag_remember(w, &w->now, 0);
	w->p.t.dir = MST_DIR_REQUEST;
	reason = ct_create(0, 0);
	if (!reason && watched())
		tell_flow(skb, MST_EVENT_NEW, MST_PATH_PACKET, 0, 0);
	return reason;
}

/* Of a flow to a published port that goes on; what else there is: untouched. */
static __always_inline int published_goes_on(struct __sk_buff *skb,
					     struct work *w)
{
	const struct mst_ct *ct = ct_lookup(w, MST_DIR_REQUEST);

	/* datagrams move on when their backend is gone, streams cannot */
	if (ct && w->p.t.proto == IPPROTO_UDP && ct->backend &&
	    !bpf_map_lookup_elem(&mst_backends_v1, &ct->backend))
		ct = NULL;
	if (ct && ct->inside && w->place == PLACE_UPLINK)
		return drop(skb, MST_REASON_SPOOFED, MST_TO_CONTAINER);
	return ct ? svc_translate(skb, w, ct) : SVC_UNTOUCHED;
}

/*
 * To a published port: gives a packet its backend's address. What nobody
 * publishes is untouched. Begins: published_goes_on() has been asked.
 */
__noinline int publish(struct __sk_buff *skb, bool begins)
{
	struct work *w = work();
	const struct mst_service *svc;
	const struct mst_endpoint *dst;
	__u32 reason;
	int verdict;
	bool open;

	if (!w || !has_ports(&w->p))
		return SVC_UNTOUCHED;
	verdict = begins ? SVC_UNTOUCHED : published_goes_on(skb, w);
	if (verdict != SVC_UNTOUCHED)
		return verdict;
	if (w->p.t.proto == IPPROTO_TCP && !is_syn(&w->p))
		return SVC_UNTOUCHED; /* the host's stack resets it */
	dst = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.daddr);
	if (!dst)
		return SVC_UNTOUCHED;
	svc = lb_published(&w->service, &w->p.t.daddr, w->p.t.dport,
			   w->p.t.proto, dst->flags & MST_EP_HOST);
	open = dst->flags & MST_EP_OPEN && w->place == PLACE_UPLINK;
	if (!svc && !open)
		return SVC_UNTOUCHED;
	reason = published_flow(skb, w, svc);
	/* the socket that holds the port would take it */
	if (reason == MST_REASON_NO_BACKEND)
		return refuse(skb, reason, UNREACH_PORT);
	if (reason)
		return drop(skb, reason,
			    w->place == PLACE_UPLINK ? MST_TO_CONTAINER
						     : MST_FROM_CONTAINER);
	return SVC_TRANSLATED;
}

/*
 * Has anybody published the port that w->p is for, at its address or at all of
 * either family's? One family alone holds the port in the other, too, where a
 * socket of the host's passes on what comes.
 */
__noinline int published_at_all(struct __sk_buff *skb)
{
	struct work *w = work();
	const struct mst_tuple *t;

	if (!w || !skb)
		return false;
	t = &w->p.t;
	if (lb_published(&w->service, &t->daddr, t->dport, t->proto, true))
		return true;
	w->now.daddr = addr4(0);
	if (addr_is4(&t->daddr))
		__builtin_memset(&w->now.daddr, 0, sizeof(w->now.daddr));
	return lb_published(&w->service, &w->now.daddr, t->dport, t->proto,
			    false) != NULL;
}

/* Does the host's address dst stay shut? The gateway's does for published
 * ports only.
 */
static __always_inline bool shut_in(struct __sk_buff *skb, struct work *w,
				    const struct mst_interface *iface,
				    const struct mst_addr *gateway)
{
	if (iface->flags & MST_IF_EGRESS)
		return false;
	return !addr_eq(&w->p.t.daddr, gateway) || published_at_all(skb);
}

#endif /* MST_PUBLISHED_H */
