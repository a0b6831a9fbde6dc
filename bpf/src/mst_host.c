// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * mst_host.c - what comes to the host from outside.
 *
 * host_ingress sees a device that leads out before the host's stack and its
 * firewall do: replies to flows that left masqueraded, and what is for
 * published ports, go straight into the sandbox. All else passes untouched.
 * host_ip_ingress does that where packets have no Ethernet header.
 * slave_ingress sees what containers on slaves send to the host.
 */
#include "deliver.h"
#include "egress.h"
#include "published.h"
#include "slave.h"
#include "snat.h"

/* Gives a packet without one an Ethernet header, whose addresses are still to
 * be written; false if the kernel refuses.
 */
static __always_inline bool add_ethernet(struct __sk_buff *skb)
{
	__be16 type = (__be16)skb->protocol;

	return bpf_skb_change_head(skb, ETH_HLEN, 0) == 0 &&
	       bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &type,
				   sizeof(type), 0) == 0;
}

/* Into the sandbox of the endpoint that w->p is for now. */
static __always_inline int enter(struct __sk_buff *skb, struct work *w)
{
	const struct mst_endpoint *dst;

	dst = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.daddr);
	if (!dst || !reaches(dst, w->place))
		return TC_PASS;
	if (dst->via && w->place == PLACE_UPLINK)
		came_by(w, skb->ifindex);
	if (w->p.l3 == L2_NONE && !add_ethernet(skb))
		return drop(skb, MST_REASON_NAT_FAILED, MST_TO_CONTAINER);
	return deliver(skb, w->place, dst);
}

/* A reply to a masqueraded flow: back to the endpoint's own address. */
static __always_inline int unmasquerade(struct __sk_buff *skb, struct work *w)
{
	const struct mst_ct *ct;

	if (is_icmp(&w->p) && !is_echo_reply(&w->p))
		return SVC_UNTOUCHED;
	ct = snat_lookup(&w->p, MST_DIR_REPLY);
	if (!ct)
		return SVC_UNTOUCHED;
	if (ct->inside) /* with the host itself, which is not out there */
		return drop(skb, MST_REASON_SPOOFED, MST_TO_CONTAINER);
	snat_become(skb, w, ct);
	frag_remember(w, &w->now, 0);
	if (nat_tuple(skb))
		return drop(skb, MST_REASON_NAT_FAILED, MST_TO_CONTAINER);
	return SVC_TRANSLATED;
}

/* An error about a packet that left masqueraded: its sender learns of it. */
static __always_inline int unmasquerade_error(struct __sk_buff *skb,
					      struct work *w)
{
	const struct mst_ct *ct;

	if (!quoted(skb, w))
		return SVC_UNTOUCHED;
	ct = bpf_map_lookup_elem(&mst_snat_v2, ct_reply_key(w, &w->inner.t,
							    w->inner.t.proto));
	if (!ct || ct->inside)
		return SVC_UNTOUCHED;
	w->known.saddr = ct->daddr;
	w->known.daddr = ct->saddr;
	w->known.sport = ct->dport;
	w->known.dport = ct->sport;
	w->now.saddr = w->p.t.saddr;
	w->now.daddr = ct->daddr;
	if (nat_icmp_error(skb))
		return drop(skb, MST_REASON_NAT_FAILED, MST_TO_CONTAINER);
	return SVC_TRANSLATED;
}

/*
 * For a flow that left masqueraded, or about one. Where its container asked a
 * VIP, whose backend is outside, the VIP answers: nobody translates what is
 * delivered past the container's host end.
 */
static __always_inline int answered_outside(struct __sk_buff *skb,
					    struct work *w)
{
	int verdict;

	if (w->p.frag == FRAG_LATER)
		verdict = svc_fragment(skb, w);
	else if (!w->p.frag && is_icmp_error(&w->p))
		verdict = unmasquerade_error(skb, w);
	else
		verdict = unmasquerade(skb, w);
	if (verdict != SVC_TRANSLATED || !ct_in_use())
		return verdict;
	verdict = svc_reply(skb);
	return verdict == SVC_UNTOUCHED ? SVC_TRANSLATED : verdict;
}

/* Is it a question for, or an answer of, a neighbour? */
static __always_inline bool finds_neighbours(const struct pkt *p)
{
	return p->v6 && p->t.proto == IPPROTO_ICMPV6 && p->frag != FRAG_LATER &&
	       (p->icmp_type == ICMP6_NS || p->icmp_type == ICMP6_NA);
}

/*
 * Is what has no ports for a container nonetheless? All else at a container's
 * own address is the stack's to forward, and lxc_egress's to stop.
 */
static __always_inline bool is_open(const struct work *w)
{
	const struct mst_endpoint *dst;

	if (w->p.t.proto == IPPROTO_TCP || w->p.t.proto == IPPROTO_UDP)
		return false; /* publish() has judged */
	if (is_inside(&w->p.t.saddr) || on_link_only(&w->p.t.saddr) ||
	    finds_neighbours(&w->p))
		return false; /* forged: the stack and lxc_egress say so */
	dst = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.daddr);
	if (!dst || dst->flags & MST_EP_HOST)
		return false;
	return dst->flags & MST_EP_OPEN ||
	       (dst->flags & MST_EP_PING && is_echo(&w->p));
}

/*
 * Is an address on the packet that only exists within a host? With
 * route_localnet the stack would take it.
 */
static __always_inline bool is_martian(const struct work *w)
{
	return addr_loopback(&w->p.t.daddr) || addr_loopback(&w->p.t.saddr);
}

/* Is it for a published port, or about a flow to one? */
static __always_inline int to_published(struct __sk_buff *skb, struct work *w,
					bool begins)
{
	if (w->p.frag == FRAG_LATER)
		return svc_fragment(skb, w);
	if (!w->p.frag && is_icmp_error(&w->p))
		return svc_icmp_error(skb);
	return publish(skb, begins);
}

/*
 * May the packet be for a port that masqueraded flows have? Of all others that
 * come back more are of published flows.
 */
static __always_inline bool may_be_masqueraded(const struct pkt *p)
{
	return bpf_ntohs(p->t.dport) >= SNAT_PORT_MIN;
}

/* Is the frame a VLAN's? A tag that is a priority alone (802.1p) is none. */
static __always_inline bool is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & VLAN_VID;
}

/* Judges what comes in by a device that leads out, with the IP header at l2. */
static __always_inline int from_outside(struct __sk_buff *skb, __u32 l2)
{
	struct work *w = work();
	__u32 reason;
	bool looked;
	int verdict;

	if (!w || is_tagged(skb) ||
	    (skb->protocol != bpf_htons(ETH_P_IP) &&
	     skb->protocol != bpf_htons(ETH_P_IPV6)))
		return TC_PASS;
	w->place = PLACE_UPLINK;
	w->network = 0;
	reason = parse(skb, l2);
	if (reason)
		return evades(w) ? drop(skb, reason, MST_TO_CONTAINER)
				 : TC_PASS;
	w->sender = w->p.t.saddr;
	if (lb_in_pool(&w->p.t.daddr) || is_martian(w))
		return drop(skb, MST_REASON_OFF_HOST, MST_TO_CONTAINER);
	if (l2 && handed_over(skb)) {
		verdict = answer_out(skb, w);
		if (verdict != SVC_UNTOUCHED)
			return verdict;
	}
	looked = has_ports(&w->p) && !may_be_masqueraded(&w->p);
	verdict = looked ? published_goes_on(skb, w) : SVC_UNTOUCHED;
	if (verdict == SVC_UNTOUCHED)
		verdict = answered_outside(skb, w);
	if (verdict == SVC_UNTOUCHED && w->p.frag != FRAG_LATER)
		verdict = to_published(skb, w, looked);
	if (verdict >= 0)
		return verdict;
	if (verdict == SVC_UNTOUCHED) {
		if (!is_open(w))
			return TC_PASS;
		frag_remember(w, &w->p.t, 0);
	}
	return enter(skb, w);
}

SEC("host-ingress")
int host_ingress(struct __sk_buff *skb)
{
	return from_outside(skb, L2_LEN);
}

/* For devices without Ethernet headers: what a sandbox gets has one. */
SEC("host-ip-ingress")
int host_ip_ingress(struct __sk_buff *skb)
{
	return from_outside(skb, L2_NONE);
}

/*
 * Does the LAN ask for the MAC of an address of the host's? The device that
 * has the address answers: the host's slave is for containers here alone.
 */
static __always_inline bool lan_asks(struct __sk_buff *skb, struct work *w,
				     const struct mst_interface *iface)
{
	const struct mst_endpoint *asker;
	struct mst_addr from;
	struct arp arp;
	__be32 ip;

	if (iface->flags & MST_IF_PRIVATE)
		return false;
	if (skb->protocol == bpf_htons(ETH_P_ARP)) {
		if (bpf_skb_load_bytes(skb, L2_LEN, &arp, sizeof(arp)) ||
		    arp.op != ARP_REQUEST)
			return false;
		__builtin_memcpy(&ip, arp.sip, sizeof(ip));
		from = addr4(ip);
	} else {
		if (skb->protocol != bpf_htons(ETH_P_IPV6) ||
		    parse(skb, L2_LEN) || w->p.t.proto != IPPROTO_ICMPV6 ||
		    w->p.icmp_type != ICMP6_NS)
			return false;
		from = w->p.t.saddr;
	}
	asker = bpf_map_lookup_elem(&mst_endpoints_v1, &from);
	return !asker || asker->network != iface->network;
}

/*
 * Does a frame for many bring what it should not? The stack would take a packet
 * for one alone unjudged. A subnet's own broadcast address counts as one: no
 * map has subnets. On a LAN others may have what is not the host's.
 */
static __always_inline bool abuses_broadcast(struct __sk_buff *skb,
					     struct work *w,
					     const struct mst_interface *iface)
{
	bool private = iface->flags & MST_IF_PRIVATE;

	if (skb->protocol != bpf_htons(ETH_P_IP) &&
	    skb->protocol != bpf_htons(ETH_P_IPV6))
		return false;
	if (parse(skb, L2_LEN))
		return private || evades(w);
	if (is_multicast(&w->p))
		return private && !finds_neighbours(&w->p);
	return private || evades(w) || lb_in_pool(&w->p.t.daddr) ||
	       is_martian(w);
}

/* Is it for an address of the host's that is not the network's gateway? */
static __always_inline bool is_beyond(const struct work *w,
				      const struct mst_interface *iface)
{
	return lb_is_host(&w->p.t.daddr) &&
	       !addr_eq(&w->p.t.daddr,
			w->p.v6 ? &iface->gateway6 : &iface->gateway4);
}

/* Where a packet of an endpoint on a private parent may go. */
static __always_inline int leave(struct __sk_buff *skb, struct work *w,
				 const struct mst_interface *iface)
{
	const struct mst_addr *gateway = w->p.v6 ? &iface->gateway6
						 : &iface->gateway4;
	const struct mst_endpoint *dst;

	dst = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.daddr);
	if (dst && dst->flags & MST_EP_HOST ? shut_in(skb, w, iface, gateway)
					    : dst && dst->network != w->network)
		return drop(skb, MST_REASON_ISOLATED, MST_FROM_CONTAINER);
	if (dst && dst->flags & MST_EP_HOST)
		snat_track_to_host(skb, iface);
	if (dst)
		return reaches(dst, w->place) ? deliver(skb, w->place, dst)
					      : SVC_UNTOUCHED;
	if (addr_eq(&w->p.t.daddr, gateway))
		return SVC_UNTOUCHED;
	if (lb_in_pool(&w->p.t.daddr))
		return refuse(skb, MST_REASON_NO_SERVICE, UNREACH_HOST);
	if (!(iface->flags & MST_IF_EGRESS) || addr_loopback(&w->p.t.daddr))
		return refuse(skb, MST_REASON_NO_ROUTE, UNREACH_HOST);
	return egress(skb, w, iface, false);
}

/* What a container on a slave sends to the host; SVC_UNTOUCHED or TC_PASS: the
 * stack's. */
static __always_inline int from_slave(struct __sk_buff *skb, struct work *w,
				      const struct mst_interface *iface)
{
	bool private = iface->flags & MST_IF_PRIVATE;
	const struct mst_endpoint *src;
	int verdict;

	if (private && skb->vlan_present)
		return drop(skb, MST_REASON_VLAN, MST_FROM_CONTAINER);
	verdict = answer_out(skb, w);
	if (verdict != SVC_UNTOUCHED)
		return verdict;
	src = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.saddr);
	if (private && (!src || src->network != w->network))
		return drop(skb, MST_REASON_SPOOFED, MST_FROM_CONTAINER);
	/* an internal network reaches no published port */
	if (!private || iface->flags & MST_IF_EGRESS)
		verdict = to_published(skb, w, false);
	if (verdict == SVC_TRANSLATED)
		return enter(skb, w);
	if (verdict != SVC_UNTOUCHED || !private)
		return verdict;
	return leave(skb, w, iface);
}

SEC("slave-ingress")
int slave_ingress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, reason;
	const struct mst_interface *iface;
	struct work *w = work();
	int verdict;

	iface = bpf_map_lookup_elem(&mst_interfaces_v1, &ifindex);
	if (!w || !iface)
		return TC_PASS;
	if (is_for_many(skb)) {
		if (abuses_broadcast(skb, w, iface))
			return drop(skb, MST_REASON_MULTICAST,
				    MST_FROM_CONTAINER);
		return lan_asks(skb, w, iface) ? TC_DROP : TC_PASS;
	}
	if (skb->protocol != bpf_htons(ETH_P_IP) &&
	    skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_PASS;
	w->place = PLACE_SLAVE;
	w->via = iface->via;
	w->reply = false;
	w->network = iface->network;
	reason = parse(skb, L2_LEN);
	if (reason)
		return iface->flags & MST_IF_PRIVATE || evades(w)
			       ? drop(skb, reason, MST_FROM_CONTAINER)
			       : TC_PASS;
	w->sender = w->p.t.saddr;
	/* a private parent's are judged as all that it may not send */
	if (!(iface->flags & MST_IF_PRIVATE) && is_martian(w))
		return drop(skb, MST_REASON_OFF_HOST, MST_FROM_CONTAINER);
	if (iface->flags & MST_IF_PRIVATE && is_multicast(&w->p) &&
	    !finds_neighbours(&w->p))
		return drop(skb, MST_REASON_MULTICAST, MST_FROM_CONTAINER);
	/* what is for the link alone is the stack's, but no way around
	 * shut_in() */
	if (on_link_only(&w->p.t.saddr) && iface->flags & MST_IF_PRIVATE &&
	    !(iface->flags & MST_IF_EGRESS) &&
	    (published_at_all(skb) || is_beyond(w, iface)))
		return drop(skb, MST_REASON_ISOLATED, MST_FROM_CONTAINER);
	verdict = SVC_UNTOUCHED;
	if (!is_multicast(&w->p) && !on_link_only(&w->p.t.saddr))
		verdict = from_slave(skb, w, iface);
	if (verdict > TC_PASS)
		return verdict;
	if (ifindex == iface->via)
		return TC_PASS;
	/* what ipvlan handed to its parent: the stack knows the slave alone */
	return bpf_redirect(iface->via, BPF_F_INGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
