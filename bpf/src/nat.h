/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* nat.h - rewriting tuples, with every checksum that covers them. */
#ifndef MST_NAT_H
#define MST_NAT_H

#include "csum.h"
#include "parse.h"

#define IP4_TTL	  8
#define IP4_CSUM  10
#define IP4_SADDR 12
#define IP6_TTL	  7
#define IP6_SADDR 8

static __always_inline int l4_csum_offset(const struct pkt *p)
{
	switch (p->t.proto) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMPV6:
		return 2;
	}
	return -1;
}

/*
 * Writes the addresses of the quoted packet's IP header at l3, of either
 * family, and returns the difference for checksums that cover them. The IPv4
 * header's own checksum is done here.
 */
static __always_inline int nat_quoted_addrs(struct __sk_buff *skb, __u32 l3,
					    bool v6, const struct mst_addr *old,
					    const struct mst_addr *now,
					    __s64 *diff)
{
	__be32 from[2], to[2];

	if (v6) {
		*diff = bpf_csum_diff((__be32 *)old, 32, (__be32 *)now, 32, 0);
		return bpf_skb_store_bytes(skb, l3 + IP6_SADDR, now, 32, 0);
	}
	from[0] = old[0].w[3];
	from[1] = old[1].w[3];
	to[0] = now[0].w[3];
	to[1] = now[1].w[3];
	*diff = bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);
	if (bpf_l3_csum_replace(skb, l3 + IP4_CSUM, 0, *diff, 0))
		return -1;
	return bpf_skb_store_bytes(skb, l3 + IP4_SADDR, to, sizeof(to), 0);
}

/*
 * Writes what now has of the IP header of p; of IPv4 with ports these, too,
 * which follow it: each write is a call that may copy the packet's head.
 * Returns the difference for checksums that cover the addresses.
 */
static __always_inline int nat_header(struct __sk_buff *skb, struct work *w,
				      const struct mst_tuple *now, bool ports,
				      __u32 *diff)
{
	struct nat_head *head = &w->head;
	struct pkt *p = &w->p;
	__u32 len;

	if (p->v6) {
		*diff = (__u32)bpf_csum_diff((__be32 *)&p->t.saddr, 32,
					     (__be32 *)&now->saddr, 32, 0);
		/* Nothing in the header makes up for the addresses in a NIC's
		 * sum of the packet (CHECKSUM_COMPLETE). */
		return bpf_skb_store_bytes(skb, p->l3 + IP6_SADDR, &now->saddr,
					   32, BPF_F_RECOMPUTE_CSUM);
	}
	*diff = csum_short(csum_change(p->t.saddr.w[3], now->saddr.w[3]) +
			   csum_change(p->t.daddr.w[3], now->daddr.w[3]));
	p->csum = csum_after(p->csum, *diff);
	head->csum = p->csum;
	head->saddr = now->saddr.w[3];
	head->daddr = now->daddr.w[3];
	head->ports[0] = now->sport;
	head->ports[1] = now->dport;
	len = offsetof(struct nat_head, ports) -
	      offsetof(struct nat_head, csum);
	if (ports)
		len += sizeof(head->ports);
	return bpf_skb_store_bytes(skb, p->l3 + IP4_CSUM, &head->csum, len, 0);
}

/* Gives an echo request or reply the id that is a port in its tuple. */
static __always_inline int nat_echo(struct __sk_buff *skb, const struct pkt *p,
				    const struct mst_tuple *now)
{
	__be16 from = p->t.sport | p->t.dport, to = now->sport | now->dport;

	if (from == to)
		return 0;
	if (bpf_l4_csum_replace(skb, p->l4 + 2, from, to, sizeof(to)))
		return -1;
	return bpf_skb_store_bytes(skb, p->l4 + 4, &to, sizeof(to), 0);
}

static __always_inline bool is_icmp(const struct pkt *p)
{
	return p->t.proto == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

/* Does the packet have the ports of TCP or UDP? */
static __always_inline bool has_ports(const struct pkt *p)
{
	return p->frag != FRAG_LATER &&
	       (p->t.proto == IPPROTO_TCP || p->t.proto == IPPROTO_UDP);
}

/*
 * Puts the change of addresses and that of ports into the checksum at off. Not
 * at once: where the NIC makes the checksum, that field has the addresses only.
 */
static __always_inline int nat_csum(struct __sk_buff *skb, const struct pkt *p,
				    int off, __u32 diff, __u32 from, __u32 to)
{
	__u64 flags = p->t.proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (bpf_l4_csum_replace(skb, p->l4 + off, 0, diff,
				BPF_F_PSEUDO_HDR | flags))
		return -1;
	if (from == to)
		return 0;
	return bpf_l4_csum_replace(skb, p->l4 + off, from, to,
				   sizeof(to) | flags);
}

/*
 * Makes the packet's tuple w->now, and w->p.t with it. A later fragment has
 * no ports to write. Returns 0, or -1 if the kernel refuses.
 */
__noinline int nat_tuple(struct __sk_buff *skb)
{
	struct work *w = work();
	const struct mst_tuple *now;
	__u32 from, to, diff = 0;
	bool ports, behind;
	struct pkt *p;
	int off;

	if (!w)
		return -1;
	p = &w->p;
	now = &w->now;
	from = p->t.sport | (__u32)p->t.dport << 16;
	to = now->sport | (__u32)now->dport << 16;
	/* of a flow at the container's own address nothing changes */
	if (from == to && addr_eq(&p->t.saddr, &now->saddr) &&
	    addr_eq(&p->t.daddr, &now->daddr))
		return 0;
	ports = has_ports(p) && from != to;
	behind = !p->v6 && p->l4 == p->l3 + sizeof(struct iphdr);
	off = p->frag == FRAG_LATER ? -1 : l4_csum_offset(p);
	if (nat_header(skb, w, now, ports && behind, &diff))
		return -1;
	if (off >= 0 && nat_csum(skb, p, off, diff, ports ? from : to, to))
		return -1;
	if (ports && !behind &&
	    bpf_skb_store_bytes(skb, p->l4, &to, sizeof(to), 0))
		return -1;
	if (is_icmp(p) && p->frag != FRAG_LATER && nat_echo(skb, p, now))
		return -1;
	p->t.saddr = now->saddr;
	p->t.daddr = now->daddr;
	p->t.sport = now->sport;
	p->t.dport = now->dport;
	return 0;
}

/* Gives the packet that an ICMP error quotes the ports, or the id, of now. */
static __always_inline int nat_quoted_ports(struct __sk_buff *skb,
					    const struct pkt *p,
					    const struct pkt *inner,
					    const struct mst_tuple *now)
{
	__u32 from = inner->t.sport | (__u32)inner->t.dport << 16;
	__u32 to = now->sport | (__u32)now->dport << 16;
	__be16 id;

	if (is_icmp(inner)) {
		id = now->sport | now->dport;
		if (bpf_l4_csum_replace(skb, p->l4 + 2,
					inner->t.sport | inner->t.dport, id,
					sizeof(id)))
			return -1;
		return bpf_skb_store_bytes(skb, inner->l4 + 4, &id, sizeof(id),
					   0);
	}
	if (bpf_l4_csum_replace(skb, p->l4 + 2, from, to, sizeof(to)))
		return -1;
	return bpf_skb_store_bytes(skb, inner->l4, &to, sizeof(to), 0);
}

/*
 * Translates an ICMP error: its addresses become those of w->now, the tuple
 * of the packet it quotes, w->inner, becomes w->known.
 */
__noinline int nat_icmp_error(struct __sk_buff *skb)
{
	struct work *w = work();
	const struct mst_tuple *outer, *quoted;
	struct pkt *p, *inner;
	__u32 csum, diff = 0;
	__s64 inner_diff = 0;

	if (!w)
		return -1;
	p = &w->p;
	inner = &w->inner;
	outer = &w->now;
	quoted = &w->known;
	csum = p->l4 + 2;
	if (nat_quoted_addrs(skb, inner->l3, p->v6, &inner->t.saddr,
			     &quoted->saddr, &inner_diff))
		return -1;
	/* in IPv4 the quoted header's checksum balances its addresses */
	if (p->v6 && bpf_l4_csum_replace(skb, csum, 0, inner_diff, 0))
		return -1;
	if (nat_quoted_ports(skb, p, inner, quoted))
		return -1;
	if (nat_header(skb, w, outer, false, &diff))
		return -1;
	if (p->v6 && bpf_l4_csum_replace(skb, csum, 0, diff, BPF_F_PSEUDO_HDR))
		return -1;
	p->t.saddr = outer->saddr;
	p->t.daddr = outer->daddr;
	return 0;
}

#endif /* MST_NAT_H */
