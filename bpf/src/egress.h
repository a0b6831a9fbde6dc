/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* egress.h - out of the host, past its stack and its firewall. */
#ifndef MST_EGRESS_H
#define MST_EGRESS_H

#include "answer.h"
#include "snat.h"

#define EGRESS_STACK -1 /* not ours: the host's stack decides */

/* Length of the packet as it goes on the wire; of a segment for GSO. */
static __always_inline __u32 wire_len(const struct __sk_buff *skb,
				      const struct pkt *p)
{
	if (skb->gso_size)
		return p->l4 - p->l3 + p->l4_len + skb->gso_size;
	return p->end - p->l3;
}

/* One hop less to live; false if there was none left. */
static __always_inline bool hop(struct __sk_buff *skb, struct pkt *p)
{
	struct {
		__u8 ttl;
		__u8 protocol;
		__sum16 csum;
	} now;

	if (p->ttl <= 1)
		return false;
	p->ttl--;
	if (p->v6)
		return bpf_skb_store_bytes(skb, p->l3 + IP6_TTL, &p->ttl,
					   sizeof(p->ttl), 0) == 0;
	p->csum = csum_after(p->csum, (__u16)~bpf_htons(0x0100));
	now.ttl = p->ttl;
	now.protocol = p->protocol;
	now.csum = p->csum;
	return bpf_skb_store_bytes(skb, p->l3 + IP4_TTL, &now, sizeof(now),
				   0) == 0;
}

/*
 * Makes a packet that was translated what its container sent: it knows the
 * flow by no other name, so an error must quote that. Errors and later
 * fragments are not answered and stay as they are.
 */
static __always_inline int untranslate(struct __sk_buff *skb, struct work *w,
				       const struct mst_tuple *came)
{
	if (w->p.frag == FRAG_LATER || is_icmp_error(&w->p))
		return 0;
	w->now = *came;
	return nat_tuple(skb);
}

/*
 * Refuses what cannot go on, in the name of the gateway. (What is too large
 * is not cut here, even where it may be: its sender does that from then on.)
 */
static __always_inline int stop(struct __sk_buff *skb, struct work *w,
				const struct mst_interface *iface,
				bool translated, __u32 reason, __u32 how)
{
	const struct mst_addr *gateway = w->p.v6 ? &iface->gateway6
						 : &iface->gateway4;

	if (translated && untranslate(skb, w, &w->came))
		return drop(skb, MST_REASON_NAT_FAILED, MST_FROM_CONTAINER);
	if (!addr_zero(gateway))
		w->p.t.daddr = *gateway;
	return refuse(skb, reason, how);
}

/* The device that forwards the packet: the host's slave for what others have.
 */
static __always_inline __u32 comes_from(const struct __sk_buff *skb,
					const struct work *w)
{
	__u32 ifindex = skb->ifindex;

	/* else the compiler chooses an address to load from */
	asm volatile("" : "+r"(ifindex));
	return w->place == PLACE_SLAVE ? w->via : ifindex;
}

/*
 * Sends the packet of an endpoint out of the host: where a route leads to an
 * uplink, and nowhere else. An answer keeps the address that it was given.
 * Returns a verdict, or EGRESS_STACK.
 */
static __always_inline int egress(struct __sk_buff *skb, struct work *w,
				  const struct mst_interface *iface,
				  bool translated)
{
	const struct mst_uplink *uplink;
	struct bpf_fib_lookup fib = {};
	struct bpf_redir_neigh nh = {};
	struct pkt *p = &w->p;
	__u32 reason, masquerade;
	long err;

	fib.ifindex = comes_from(skb, w);
	fib.l4_protocol = p->t.proto;
	fib.tot_len = wire_len(skb, p);
	if (p->v6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &p->t.saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->t.daddr, 16);
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = p->t.saddr.w[3];
		fib.ipv4_dst = p->t.daddr.w[3];
	}
	err = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	switch (err) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
	case BPF_FIB_LKUP_RET_BLACKHOLE:
		return stop(skb, w, iface, translated, MST_REASON_NO_ROUTE,
			    UNREACH_HOST);
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		w->mtu = fib.mtu_result;
		return stop(skb, w, iface, translated, MST_REASON_TOO_BIG,
			    UNREACH_TOO_BIG);
	default:
		return EGRESS_STACK;
	}
	uplink = bpf_map_lookup_elem(&mst_uplinks_v1, &fib.ifindex);
	masquerade = p->v6 ? MST_IF_MASQUERADE6 : MST_IF_MASQUERADE4;
	/* lxc_egress lets in what the stack brings back */
	if (!w->reply && (!uplink || !(iface->flags & masquerade))) {
		reason = snat_track(skb);
		if (reason)
			return drop(skb, reason, MST_FROM_CONTAINER);
	}
	if (!uplink)
		return EGRESS_STACK;
	if (!hop(skb, p))
		return stop(skb, w, iface, translated, MST_REASON_TTL,
			    UNREACH_TTL);
	if (iface->flags & masquerade && !w->reply) {
		reason = snat_out(skb, uplink);
		if (reason)
			return drop(skb, reason, MST_FROM_CONTAINER);
	}
	nh.nh_family = fib.family;
	/* IPv4 may go by IPv6 (RFC 8950): either is first in both unions */
	__builtin_memcpy(nh.ipv6_nh, fib.ipv6_dst, 16);
	return bpf_redirect_neigh(fib.ifindex, &nh, sizeof(nh), 0);
}

#endif /* MST_EGRESS_H */
