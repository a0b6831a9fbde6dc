/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* svc.h - services per packet, for what no socket hook saw. */
#ifndef MST_SVC_H
#define MST_SVC_H

#include "answer.h"
#include "ct.h"
#include "lb.h"
#include "nat.h"

/* What became of a packet. A value above PASS is a verdict for the hook. */
#define SVC_UNTOUCHED  -1
#define SVC_TRANSLATED -2

/*
 * Source ports for flows whose own is taken: above what clients choose from
 * (ip_local_port_range ends at 60999 unless it was changed).
 */
#define PORT_MIN   61000
#define PORT_COUNT 4536
#define PORT_TRIES 4

static __always_inline __be16 own_port(void)
{
	return bpf_htons(PORT_MIN + bpf_get_prandom_u32() % PORT_COUNT);
}

/*
 * An ICMP error from a backend (or a router on the way to it) about a packet
 * that we sent there, or from a client about a reply that we translated. The
 * quoted packet is one that left us: the entry of its flow's other direction
 * says what the receiver knows the flow by.
 */
__noinline int svc_icmp_error(struct __sk_buff *skb)
{
	struct work *w = work();
	const struct mst_ct *ct;
	bool own;

	if (!w || !quoted(skb, w))
		return SVC_UNTOUCHED;
	own = addr_eq(&w->p.t.saddr, &w->inner.t.daddr);
	ct = ct_of_sent(w, &w->inner.t);
	/* an endpoint tells of what itself was sent, only routers of others' */
	if (!ct || (w->network && !own))
		return SVC_UNTOUCHED;
	/* nobody outside was on the way to what is inside */
	if (w->place == PLACE_UPLINK && is_inside(&w->inner.t.daddr))
		return SVC_UNTOUCHED;
	w->known.saddr = ct->daddr;
	w->known.daddr = ct->saddr;
	w->known.sport = ct->dport;
	w->known.dport = ct->sport;
	w->now.saddr = w->p.t.saddr;
	/* only the other end itself hides behind the translated address */
	if (own)
		w->now.saddr = ct->saddr;
	w->now.daddr = ct->daddr;
	w->uplink = ct->uplink;
	if (nat_icmp_error(skb))
		return drop(skb, MST_REASON_NAT_FAILED, MST_FROM_CONTAINER);
	return SVC_TRANSLATED;
}

static __always_inline int svc_translate(struct __sk_buff *skb, struct work *w,
					 const struct mst_ct *ct)
{
	w->now.saddr = ct->saddr;
	w->now.daddr = ct->daddr;
	w->now.sport = ct->sport;
	w->now.dport = ct->dport;
	w->uplink = ct->uplink;
	w->came = w->p.t;
	ct_traffic(&w->p, ct->service, ct->backend, false);
	if (ends(&w->p) && watched())
		tell_flow(skb, MST_EVENT_END, MST_PATH_PACKET, ct->service,
			  ct->backend);
	frag_remember(w, &w->now, ct->uplink);
	if (nat_tuple(skb))
		return drop(skb, MST_REASON_NAT_FAILED, MST_FROM_CONTAINER);
	return SVC_TRANSLATED;
}

/* A later fragment of a translated flow. */
static __always_inline int svc_fragment(struct __sk_buff *skb, struct work *w)
{
	const struct mst_frag *f = frag_lookup(w);

	if (!f || (w->place == PLACE_UPLINK && is_inside(&w->p.t.saddr)))
		return SVC_UNTOUCHED;
	w->now.saddr = f->saddr;
	w->now.daddr = f->daddr;
	w->now.sport = 0;
	w->now.dport = 0;
	w->uplink = f->uplink;
	if (nat_tuple(skb))
		return drop(skb, MST_REASON_NAT_FAILED, MST_FROM_CONTAINER);
	return SVC_TRANSLATED;
}

/* From a backend: gives a reply the VIP as its source. */
__noinline int svc_reply(struct __sk_buff *skb)
{
	struct work *w = work();
	const struct mst_ct *ct;

	if (!w)
		return SVC_UNTOUCHED;
	if (w->p.frag == FRAG_LATER)
		return svc_fragment(skb, w);
	if (!w->p.frag && is_icmp_error(&w->p))
		return svc_icmp_error(skb);
	if (w->p.t.proto != IPPROTO_TCP && w->p.t.proto != IPPROTO_UDP)
		return SVC_UNTOUCHED;
	ct = ct_lookup(w, MST_DIR_REPLY);
	if (!ct)
		return SVC_UNTOUCHED;
	return svc_translate(skb, w, ct);
}

/*
 * Would the answer of w->now.daddr to the client leave by the uplink that
 * brought the request? Else somebody behind one uplink could ask in the name
 * of an address behind another, which the service allows (RFC 3704, strict
 * reverse path). On a slave of a LAN the host routes no answers.
 */
__noinline int svc_way_back(struct __sk_buff *skb)
{
	const struct mst_endpoint *ep;
	struct bpf_fib_lookup fib = {};
	struct work *w = work();
	long err;

	if (!w)
		return 0;
	ep = bpf_map_lookup_elem(&mst_endpoints_v1, &w->now.daddr);
	if (!ep || ep->parent)
		return 1;
	fib.ifindex = ep->via ? ep->via : ep->ifindex;
	if (w->p.v6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &w->p.t.daddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &w->p.t.saddr, 16);
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = w->p.t.daddr.w[3];
		fib.ipv4_dst = w->p.t.saddr.w[3];
	}
	err = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return (err == BPF_FIB_LKUP_RET_SUCCESS ||
		err == BPF_FIB_LKUP_RET_NO_NEIGH) &&
	       fib.ifindex == skb->ifindex;
}

/*
 * Chooses a backend of the service at w->service for a new flow and enters it;
 * 0 or a reason.
 */
__noinline int svc_flow_to(struct __sk_buff *skb, const struct mst_service *svc)
{
	struct work *w = work();
	const struct mst_backend *be;
	struct mst_tuple *t, *sent;
	__u32 id = 0, reason, tries;

	if (!w || !svc)
		return MST_REASON_CT_FULL;
	t = &w->p.t;
	sent = &w->now;
	be = lb_select_for(&w->service, svc, &t->saddr, t->dport, t->proto,
			   &id);
	if (!be)
		return svc->id ? MST_REASON_NO_BACKEND : MST_REASON_NO_SERVICE;
	sent->saddr = t->saddr;
	sent->daddr = be->addr;
	sent->sport = t->sport;
	sent->dport = be->port ? be->port : t->dport;
	if (w->place == PLACE_UPLINK && svc->flags & MST_SVC_RESTRICTED &&
	    !svc_way_back(skb))
		return MST_REASON_SPOOFED;
	/* a member that calls its own VIP: the reply must come back to us */
	if (addr_eq(&be->addr, &t->saddr)) {
		sent->saddr = t->daddr;
		/* the host's own sockets have that address, and lower ports */
		if (svc->flags & MST_SVC_PUBLISHED)
			sent->sport = own_port();
	}
	reason = ct_create(svc->id, id);
	/* two VIPs, or two of its ports, with one backend and client port */
	for (tries = 0; reason == MST_REASON_CT_COLLISION && tries < PORT_TRIES;
	     tries++) {
		sent->sport = own_port();
		reason = ct_create(svc->id, id);
	}
	if (reason)
		return reason;
	t->dir = MST_DIR_REQUEST;
	ct_traffic(&w->p, svc->id, id, true);
	if (watched())
		tell_flow(skb, MST_EVENT_NEW, MST_PATH_PACKET, svc->id, id);
	frag_remember(w, sent, 0);
	return nat_tuple(skb) ? MST_REASON_NAT_FAILED : 0;
}

/* A new flow to the VIP that w->p is for; 0 or a reason. */
static __always_inline int svc_new_flow(struct __sk_buff *skb, struct work *w)
{
	const struct mst_service *head, *svc;

	head = lb_head(&w->service, &w->p.t.daddr);
	if (!head)
		return MST_REASON_NO_SERVICE;
	svc = lb_service(&w->service, head, w->p.t.dport, w->p.t.proto);
	if (w->p.t.proto == IPPROTO_TCP && !is_syn(&w->p))
		return MST_REASON_NO_FLOW;
	return svc_flow_to(skb, svc);
}

/* Tells a client that its new flow cannot be, or drops it where it may try
 * again. */
static __always_inline int svc_no_flow(struct __sk_buff *skb, __u32 reason)
{
	switch (reason) {
	case MST_REASON_NO_FLOW:
	case MST_REASON_NO_SERVICE:
	case MST_REASON_NO_BACKEND:
		return refuse(skb, reason, UNREACH_PORT);
	}
	return drop(skb, reason, MST_FROM_CONTAINER);
}

/*
 * To a VIP: gives a packet of a member of w->network its backend's address.
 * What cannot be is refused by a reset or for its port: a socket that is busy
 * connecting keeps an ICMP error until it asks again, a second later, and one
 * of UDP hears of no other.
 */
__noinline int svc_request(struct __sk_buff *skb)
{
	struct work *w = work();
	const struct mst_service *head;
	struct mst_ct *ct;
	__u32 reason;

	if (!w)
		return SVC_UNTOUCHED;
	head = lb_head(&w->service, &w->p.t.daddr);
	if (!head) {
		if (lb_in_pool(&w->p.t.daddr))
			return refuse(skb, MST_REASON_NO_SERVICE, UNREACH_PORT);
		reason = 0;
		if (w->p.t.proto == IPPROTO_TCP ? is_syn(&w->p)
						: w->p.t.proto == IPPROTO_UDP)
			reason = ct_direct(w);
		if (reason)
			return drop(skb, reason, MST_FROM_CONTAINER);
		return SVC_UNTOUCHED;
	}
	if (head->network && head->network != w->network)
		return refuse(skb, MST_REASON_NOT_MEMBER, UNREACH_PORT);
	if (is_echo(&w->p) && !w->p.frag)
		return answer_echo(skb);
	if (w->p.frag == FRAG_LATER)
		return drop(skb, MST_REASON_NO_FRAGMENT_HEAD,
			    MST_FROM_CONTAINER);
	if (w->p.t.proto != IPPROTO_TCP && w->p.t.proto != IPPROTO_UDP)
		return refuse(skb, MST_REASON_NO_SERVICE, UNREACH_PORT);
	ct = ct_lookup(w, MST_DIR_REQUEST);
	/* datagrams move on when their backend is gone, streams cannot */
	if (ct && w->p.t.proto == IPPROTO_UDP &&
	    !bpf_map_lookup_elem(&mst_backends_v1, &ct->backend))
		ct = NULL;
	if (ct)
		return svc_translate(skb, w, ct);
	reason = svc_new_flow(skb, w);
	return reason ? svc_no_flow(skb, reason) : SVC_TRANSLATED;
}

#endif /* MST_SVC_H */
