/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * slave.h - answers of slaves that go out through the host.
 *
 * A slave's own program gives an answer the host's address back, and on a
 * parent that the client comes by it leaves directly. Else it is sent to the
 * host's slave, which sends it out by the device that the client comes by.
 */
#ifndef MST_SLAVE_H
#define MST_SLAVE_H

#include "deliver.h"
#include "egress.h"
#include "svc.h"

/* Remembers by which device the client of the flow to a slave, w->p, comes. */
static __always_inline void came_by(struct work *w, __u32 uplink)
{
	struct mst_tuple *key = ct_reply_key(w, &w->p.t, w->p.t.proto);
	struct mst_ct *ct;

	ct = bpf_map_lookup_elem(&mst_ct_v2, key);
	if (!ct || ct->uplink == uplink)
		return;
	ct->uplink = uplink;
	key->saddr = ct->daddr;
	key->daddr = ct->saddr;
	key->sport = ct->dport;
	key->dport = ct->sport;
	key->dir = MST_DIR_REQUEST;
	ct = bpf_map_lookup_elem(&mst_ct_v2, key);
	if (ct)
		ct->uplink = uplink;
}

/* Has ipvlan handed the frame of a slave to its parent, whose MAC both have? */
static __always_inline bool handed_over(struct __sk_buff *skb)
{
	__be16 m[6];

	if (bpf_skb_load_bytes(skb, 0, m, sizeof(m)))
		return false;
	return m[0] == m[3] && m[1] == m[4] && m[2] == m[5];
}

/*
 * The flow that w->p is an answer of, under the addresses that its client
 * knows, if a slave here has it: of this network or parent.
 */
static __always_inline const struct mst_ct *answered(struct __sk_buff *skb,
						     struct work *w)
{
	struct mst_tuple *key = ct_reply_key(w, &w->p.t, w->p.t.proto);
	const struct mst_endpoint *src;
	const struct mst_ct *ct;

	if (!w->p.frag && is_icmp_error(&w->p)) {
		if (!quoted(skb, w))
			return NULL;
		*key = w->inner.t;
	}
	key->dir = MST_DIR_REQUEST;
	ct = bpf_map_lookup_elem(&mst_ct_v2, key);
	if (!ct)
		return NULL;
	src = bpf_map_lookup_elem(&mst_endpoints_v1, &ct->daddr);
	if (!src || !src->via)
		return NULL;
	if (w->place == PLACE_SLAVE ? src->via != w->via
				    : src->parent != skb->ifindex)
		return NULL;
	return ct;
}

/*
 * Tells the slave whose answer w->p is that it is too large for the way out,
 * about the packet that it sent: ct is the flow as its client began it.
 */
static __always_inline int answer_too_big(struct __sk_buff *skb, struct work *w,
					  const struct mst_ct *ct)
{
	const struct mst_endpoint *src;

	w->place = PLACE_SLAVE; /* also if a parent brought it */
	if (ct && w->p.frag != FRAG_LATER && !is_icmp_error(&w->p)) {
		w->came.saddr = ct->daddr;
		w->came.daddr = ct->saddr;
		w->came.sport = ct->dport;
		w->came.dport = ct->sport;
		src = bpf_map_lookup_elem(&mst_endpoints_v1, &ct->daddr);
		if (!src || untranslate(skb, w, &w->came))
			return drop(skb, MST_REASON_NAT_FAILED,
				    MST_FROM_CONTAINER);
		w->via = src->via;
	}
	return refuse(skb, MST_REASON_TOO_BIG, UNREACH_TOO_BIG);
}

/* Does w->p fit the device? Leaves its MTU in w->mtu. */
static __always_inline bool fits(struct __sk_buff *skb, struct work *w,
				 __u32 ifindex)
{
	__u32 mtu = 0;

	/* whatever it says of the packet: GSO always fits for it */
	bpf_check_mtu(skb, ifindex, &mtu, 0, 0);
	w->mtu = mtu;
	return !mtu || wire_len(skb, &w->p) <= mtu;
}

/* Sends an answer to its client; SVC_UNTOUCHED if w->p is none. */
static __always_inline int answer_out(struct __sk_buff *skb, struct work *w)
{
	const struct mst_endpoint *dst;
	const struct mst_ct *ct = NULL;
	const struct mst_frag *f;
	__u32 uplink;

	if (w->p.frag == FRAG_LATER) {
		f = frag_lookup(w);
		if (!f)
			return SVC_UNTOUCHED;
		uplink = f->uplink;
	} else {
		ct = answered(skb, w);
		if (!ct)
			return SVC_UNTOUCHED;
		uplink = ct->uplink;
		frag_remember(w, &w->p.t, uplink);
	}
	dst = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.daddr);
	if (dst && reaches(dst, w->place))
		return deliver(skb, w->place, dst);
	if (!uplink)
		return SVC_UNTOUCHED;
	if (!fits(skb, w, uplink))
		return answer_too_big(skb, w, ct);
	return bpf_redirect_neigh(uplink, NULL, 0, 0);
}

#define PACKET_BROADCAST 1
#define PACKET_MULTICAST 2

static __always_inline bool is_for_many(const struct __sk_buff *skb)
{
	return skb->pkt_type == PACKET_BROADCAST ||
	       skb->pkt_type == PACKET_MULTICAST;
}

#endif /* MST_SLAVE_H */
