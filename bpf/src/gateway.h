/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * gateway.h - neighbour discovery, answered where it is asked.
 *
 * A strict interface has no neighbour but us: the host's end answers ARP and
 * ND for the gateway, the network's endpoints and the service pools. (The
 * kernel's proxy_arp would delay the first packet and need routes.) Inside a
 * sandbox a slave finds its neighbours on its LAN, where nobody answers for
 * VIPs: we do, with the slave's own MAC, since such frames never leave it.
 */
#ifndef MST_GATEWAY_H
#define MST_GATEWAY_H

#include "answer.h"
#include "lb.h"

/* Do we answer for target here? */
static __always_inline bool stands_for(const struct __sk_buff *skb, __u32 place,
				       const struct mst_interface *iface,
				       const struct mst_addr *target, bool v6)
{
	const struct mst_addr *gateway;
	const struct mst_endpoint *ep;

	if (!iface)
		return place == PLACE_SANDBOX && lb_in_pool(target);
	gateway = v6 ? &iface->gateway6 : &iface->gateway4;
	if (!addr_zero(gateway) && addr_eq(gateway, target))
		return true;
	ep = bpf_map_lookup_elem(&mst_endpoints_v1, target);
	if (ep)
		return ep->network == iface->network &&
		       ep->ifindex != skb->ifindex;
	return lb_in_pool(target);
}

/* The MAC to answer with; the frame's own sender inside a sandbox. */
static __always_inline int
answer_mac(struct __sk_buff *skb, const struct mst_interface *iface, __u8 *mac)
{
	if (!iface)
		return bpf_skb_load_bytes(skb, 6, mac, 6);
	__builtin_memcpy(mac, iface->mac, 6);
	return 0;
}

/*
 * Does a container say to others where routers and neighbours are? The host's
 * end alone does that; it may be told itself.
 */
static __always_inline bool misleads(const struct pkt *p,
				     const struct mst_interface *iface)
{
	if (p->frag == FRAG_LATER)
		return false;
	if (!p->v6)
		return p->t.proto == IPPROTO_ICMP &&
		       p->icmp_type == ICMP4_REDIRECT;
	if (p->t.proto != IPPROTO_ICMPV6)
		return false;
	return p->icmp_type == ICMP6_RA || p->icmp_type == ICMP6_REDIRECT ||
	       (p->icmp_type == ICMP6_NA &&
		!addr_eq(&p->t.daddr, &iface->gateway6));
}

static __always_inline int answer_arp(struct __sk_buff *skb,
				      const struct work *w,
				      const struct mst_interface *iface)
{
	struct mst_addr target;
	struct {
		__u8 dst[6];
		__u8 src[6];
		__be16 type;
		struct arp arp;
	} __attribute__((packed)) out;
	int silent = iface ? TC_DROP : TC_PASS;
	struct arp in;
	__be32 sip, tip;
	__u8 mac[6];

	if (bpf_skb_load_bytes(skb, L2_LEN, &in, sizeof(in)) ||
	    in.htype != ARP_ETHERNET || in.ptype != bpf_htons(ETH_P_IP) ||
	    in.hlen != 6 || in.plen != 4)
		return iface ? drop(skb, MST_REASON_MALFORMED,
				    MST_FROM_CONTAINER)
			     : TC_PASS;
	__builtin_memcpy(&sip, in.sip, sizeof(sip));
	__builtin_memcpy(&tip, in.tip, sizeof(tip));
	target = addr4(tip);
	/* probes and announcements (RFC 5227) need no answer */
	if (in.op != ARP_REQUEST || !sip || sip == tip ||
	    !stands_for(skb, w->place, iface, &target, false) ||
	    answer_mac(skb, iface, mac))
		return silent;
	__builtin_memcpy(out.dst, in.smac, 6);
	__builtin_memcpy(out.src, mac, 6);
	out.type = bpf_htons(ETH_P_ARP);
	out.arp = in;
	out.arp.op = ARP_REPLY;
	__builtin_memcpy(out.arp.smac, mac, 6);
	__builtin_memcpy(out.arp.sip, in.tip, 4);
	__builtin_memcpy(out.arp.tmac, in.smac, 6);
	__builtin_memcpy(out.arp.tip, in.sip, 4);
	if (bpf_skb_store_bytes(skb, 0, &out, sizeof(out), 0))
		return TC_DROP;
	return send_back(skb);
}

struct nd {
	__u8 type;
	__u8 code;
	__be16 csum;
	__be32 flags;
	struct mst_addr target;
	__u8 opt_type;
	__u8 opt_len;
	__u8 mac[6];
};

#define ND_TARGET_LLADDR 2
#define ND_SOLICITED	 0x40000000
#define ND_OVERRIDE	 0x20000000
#define ND_ROUTER	 0x80000000
#define ND_HOP_LIMIT	 255

/* Answers the neighbour solicitation p (RFC 4861, 7.2.4). */
static __noinline int answer_ns(struct __sk_buff *skb, struct work *w,
				const struct mst_interface *iface)
{
	struct pkt *p = &w->p;
	__u32 l4 = L2_LEN + sizeof(struct ipv6hdr);
	__u8 hop_limit = 0, mac[6];
	struct mst_addr target;
	struct nd out = {};

	/* neither routed nor fragmented (RFC 4861, 7.1.1; RFC 6980) */
	if (bpf_skb_load_bytes(skb, p->l3 + 7, &hop_limit, 1) ||
	    hop_limit != ND_HOP_LIMIT || p->frag ||
	    bpf_skb_load_bytes(skb, p->l4 + 8, &target, sizeof(target)))
		return iface ? drop(skb, MST_REASON_MALFORMED,
				    MST_FROM_CONTAINER)
			     : TC_PASS;
	/* duplicate address detection needs no answer */
	if (addr_zero(&p->t.saddr) ||
	    !stands_for(skb, w->place, iface, &target, true) ||
	    answer_mac(skb, iface, mac))
		return iface ? TC_DROP : TC_PASS;
	p->t.daddr = target;
	out.type = ICMP6_NA;
	out.flags = bpf_htonl(ND_SOLICITED | ND_OVERRIDE | ND_ROUTER);
	out.target = target;
	out.opt_type = ND_TARGET_LLADDR;
	out.opt_len = 1;
	__builtin_memcpy(out.mac, mac, 6);
	out.csum =
		fold(bpf_csum_diff(NULL, 0, (__be32 *)&out, sizeof(out),
				   pseudo_sum(p, sizeof(out), IPPROTO_ICMPV6)));
	if (bpf_skb_change_tail(skb, l4 + sizeof(out), 0) ||
	    swap_macs(skb, p) ||
	    bpf_skb_store_bytes(skb, 6, mac, sizeof(mac), 0) ||
	    put_ip(skb, p, sizeof(out), IPPROTO_ICMPV6) ||
	    bpf_skb_store_bytes(skb, L2_LEN + 7, &hop_limit, 1, 0) ||
	    bpf_skb_store_bytes(skb, l4, &out, sizeof(out), 0))
		return TC_DROP;
	return send_back(skb);
}

#endif /* MST_GATEWAY_H */
