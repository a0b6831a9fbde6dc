// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * mst_lxc.c - the programs of an endpoint.
 *
 * lxc_ingress sees what comes from a container, lxc_egress what goes to it.
 * On the host's end of an endpoint they are the device's ingress and egress;
 * attached inside the sandbox they change places. A netkit device has
 * lxc_netkit for lxc_ingress: it runs while the container transmits. The
 * host's own slave of a parent has lxc_egress, beside its slave_ingress.
 */
#include "deliver.h"
#include "egress.h"
#include "gateway.h"
#include "published.h"

/* The interface the program guards; NULL inside a sandbox or by hand. */
static __always_inline const struct mst_interface *
guarded(const struct __sk_buff *skb, bool host_end)
{
	__u32 ifindex = skb->ifindex;

	if (!host_end)
		return NULL;
	return bpf_map_lookup_elem(&mst_interfaces_v1, &ifindex);
}

/* In cb[0], which no sandbox can write: has been here, and comes back with the
 * MAC of its next hop.
 */
#define RESOLVED 0x6d737401

/*
 * Must an answer go out through the host? Its client comes by another device
 * than the slave's parent, or is an endpoint of another network.
 */
static __always_inline bool through_host(const struct work *w,
					 const struct mst_endpoint *src,
					 const struct mst_endpoint *dst)
{
	if (dst && !(dst->flags & MST_EP_HOST))
		return dst->network != w->network;
	return w->uplink && w->uplink != src->parent;
}

/*
 * Out of a slave, whose LAN delivers by MAC: a translated packet needs that of
 * its new destination. One to the sender itself turns back here, and one that
 * leaves the network is resolved anew by the sandbox's routes. An answer has
 * the MAC of its way already, unless that must be the host.
 */
static __always_inline int forward_slave(struct __sk_buff *skb,
					 const struct work *w,
					 const struct mst_endpoint *dst,
					 bool translated)
{
	const struct mst_endpoint *src;
	__u8 mac[6];

	if (!translated)
		return TC_PASS;
	src = w->reply ? bpf_map_lookup_elem(&mst_endpoints_v1, &w->sender)
		       : NULL;
	if (src && src->via && through_host(w, src, dst)) {
		__builtin_memcpy(mac, src->host_mac, sizeof(mac));
		if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
			return drop(skb, MST_REASON_NAT_FAILED,
				    MST_FROM_CONTAINER);
		return TC_PASS;
	}
	if (!dst || dst->flags & MST_EP_HOST) {
		if (w->reply)
			return TC_PASS;
		skb->cb[0] = RESOLVED;
		return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
	}
	__builtin_memcpy(mac, dst->mac, sizeof(mac));
	if (bpf_skb_store_bytes(skb, 0, mac, sizeof(mac), 0))
		return drop(skb, MST_REASON_NAT_FAILED, MST_FROM_CONTAINER);
	if (addr_eq(&w->p.t.daddr, &w->sender))
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	return TC_PASS;
}

/*
 * Is w->p for dst on the way to a published port: of the host's, or of a
 * container in another network at its own address? An interface that leads
 * nowhere out reaches none.
 */
static __always_inline bool to_published(const struct work *w,
					 const struct mst_endpoint *dst,
					 const struct mst_interface *iface)
{
	if (w->place == PLACE_SANDBOX)
		return false;
	if (iface && iface->flags & MST_IF_STRICT &&
	    !(iface->flags & MST_IF_EGRESS))
		return false;
	return dst->flags & MST_EP_HOST || dst->network != w->network;
}

/*
 * Is the sender a slave of a private parent? Nobody is there but its network
 * and the host's slave, which judges all that leaves it: it may be for a port
 * that a container of another network publishes at its own address.
 */
__noinline int judged_by_host(struct __sk_buff *skb)
{
	const struct mst_endpoint *src;
	struct work *w = work();

	if (!w || !skb || w->place != PLACE_SANDBOX)
		return false;
	src = bpf_map_lookup_elem(&mst_endpoints_v1, &w->sender);
	return src && src->via && !src->parent;
}

/* Do the endpoint and the host not reach each other in the packet's family? */
static __always_inline bool isolated(const struct work *w,
				     const struct mst_interface *iface)
{
	return iface &&
	       iface->flags & (w->p.v6 ? MST_IF_ISOLATED6 : MST_IF_ISOLATED4);
}

/*
 * Where a packet of a strict interface may go: its own network's endpoints
 * and the gateway, which is the host. What lxc_egress would check at the
 * destination is checked here, because deliver() passes it by.
 */
static __always_inline int forward(struct __sk_buff *skb, struct work *w,
				   const struct mst_interface *iface,
				   bool translated)
{
	int verdict;
	const struct mst_addr *gateway;
	const struct mst_endpoint *dst;
	const struct pkt *p = &w->p;
	bool strict = iface && iface->flags & MST_IF_STRICT;

	dst = bpf_map_lookup_elem(&mst_endpoints_v1, &p->t.daddr);
	if (dst && !translated && to_published(w, dst, iface)) {
		verdict = publish(skb, false);
		if (verdict >= 0)
			return verdict;
		translated = verdict == SVC_TRANSLATED;
		if (translated)
			dst = bpf_map_lookup_elem(&mst_endpoints_v1,
						  &p->t.daddr);
	}
	gateway = iface ? p->v6 ? &iface->gateway6 : &iface->gateway4 : NULL;
	if (isolated(w, iface) && addr_eq(&p->t.daddr, gateway))
		return drop(skb, MST_REASON_ISOLATED, MST_FROM_CONTAINER);
	if (dst && dst->flags & MST_EP_HOST) {
		if (strict && shut_in(skb, w, iface, gateway))
			return drop(skb, MST_REASON_ISOLATED,
				    MST_FROM_CONTAINER);
		if (!translated)
			snat_track_to_host(skb, iface);
	} else if (dst) {
		if (dst->network != w->network && !translated)
			return judged_by_host(skb)
				       ? TC_PASS
				       : drop(skb, MST_REASON_ISOLATED,
					      MST_FROM_CONTAINER);
		if (reaches(dst, w->place))
			return deliver(skb, w->place, dst);
	}
	if (w->place == PLACE_SANDBOX)
		return forward_slave(skb, w, dst, translated);
	if (dst)
		return TC_PASS;
	if (!strict || addr_eq(&p->t.daddr, gateway))
		return TC_PASS;
	/* with route_localnet the host's stack would take what is for loopback
	 */
	if (iface->flags & MST_IF_EGRESS && !addr_loopback(&p->t.daddr)) {
		verdict = egress(skb, w, iface, translated);
		return verdict == EGRESS_STACK ? TC_PASS : verdict;
	}
	if (translated)
		return TC_PASS;
	return refuse(skb, MST_REASON_NO_ROUTE, UNREACH_HOST);
}

static __always_inline int from_container(struct __sk_buff *skb, __u32 place)
{
	const struct mst_interface *iface =
		guarded(skb, place != PLACE_SANDBOX);
	bool strict = iface && iface->flags & MST_IF_STRICT;
	const struct mst_endpoint *src, *dst;
	struct work *w = work();
	__u32 reason;
	int verdict;

	if (!w)
		return TC_DROP;
	w->place = place;
	if (place == PLACE_NETKIT)
		w->via = skb->ifindex;
	if (place == PLACE_SANDBOX && skb->cb[0] == RESOLVED) {
		skb->cb[0] = 0;
		return TC_PASS;
	}
	/* a netkit device has the tag still in the frame */
	if (strict &&
	    (skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
	     skb->protocol == bpf_htons(ETH_P_8021AD)))
		return drop(skb, MST_REASON_VLAN, MST_FROM_CONTAINER);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return answer_arp(skb, w, iface);
	if (skb->protocol != bpf_htons(ETH_P_IP) &&
	    skb->protocol != bpf_htons(ETH_P_IPV6))
		return strict ? drop(skb, MST_REASON_NO_ROUTE,
				     MST_FROM_CONTAINER)
			      : TC_PASS;
	reason = parse(skb, L2_LEN);
	if (reason)
		return drop(skb, reason, MST_FROM_CONTAINER);
	if (w->p.v6 && w->p.t.proto == IPPROTO_ICMPV6 &&
	    w->p.icmp_type == ICMP6_NS)
		return answer_ns(skb, w, iface);
	if (strict && is_multicast(&w->p))
		return drop(skb, MST_REASON_MULTICAST, MST_FROM_CONTAINER);
	if (strict && misleads(&w->p, iface))
		return drop(skb, MST_REASON_SPOOFED, MST_FROM_CONTAINER);
	src = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.saddr);
	if (strict && (!src || src->ifindex != skb->ifindex))
		return drop(skb, MST_REASON_SPOOFED, MST_FROM_CONTAINER);
	w->network = src ? src->network : 0;
	w->sender = w->p.t.saddr;
	if (!ct_in_use()) {
		/* an endpoint's address is no VIP: nothing to translate */
		dst = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.daddr);
		if (dst && dst->network == w->network && reaches(dst, place))
			return deliver(skb, place, dst);
	}
	verdict = svc_reply(skb);
	w->reply = verdict == SVC_TRANSLATED;
	if (verdict == SVC_UNTOUCHED)
		verdict = svc_request(skb);
	if (verdict >= 0)
		return verdict;
	return forward(skb, w, iface, verdict == SVC_TRANSLATED);
}

SEC("lxc-ingress")
int lxc_ingress(struct __sk_buff *skb)
{
	return from_container(skb,
			      at_ingress(skb) ? PLACE_HOST : PLACE_SANDBOX);
}

SEC("lxc-netkit")
int lxc_netkit(struct __sk_buff *skb)
{
	return from_container(skb, PLACE_NETKIT);
}

/*
 * Is it an answer of somebody whom the host's stack has sent a container to
 * that asked the host, as by a port that Docker's own bridge publishes? It has
 * the host's address, and so has what the stack masquerades: so a stream does
 * not begin here, and datagrams are known by snat_track_to_host().
 */
static __always_inline bool host_answers(const struct work *w,
					 const struct mst_interface *iface,
					 const struct mst_endpoint *src)
{
	return src && src->flags & MST_EP_HOST &&
	       iface->flags & MST_IF_EGRESS && w->p.t.proto == IPPROTO_TCP &&
	       !is_syn(&w->p);
}

SEC("lxc-egress")
int lxc_egress(struct __sk_buff *skb)
{
	const struct mst_interface *iface = guarded(skb, !at_ingress(skb));
	__u32 from = skb->ingress_ifindex, reason;
	const struct mst_endpoint *src;
	struct work *w = work();
	int verdict;

	if (!w)
		return TC_DROP;
	if (skb->protocol != bpf_htons(ETH_P_IP) &&
	    skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_PASS;
	if (skb->cb[0] == VOUCHED) {
		skb->cb[0] = 0;
		return TC_PASS;
	}
	reason = parse(skb, L2_LEN);
	/* a slave gets what its LAN has, some of it without a MAC header */
	if (reason)
		return iface ? drop(skb, reason, MST_TO_CONTAINER) : TC_PASS;
	src = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.saddr);
	w->network = 0;
	w->place = PLACE_SANDBOX;
	if (iface && from && bpf_map_lookup_elem(&mst_uplinks_v1, &from))
		w->place = PLACE_UPLINK;
	if (w->place == PLACE_UPLINK && is_inside(&w->p.t.saddr))
		return drop(skb, MST_REASON_SPOOFED, MST_TO_CONTAINER);
	verdict = svc_reply(skb);
	if (verdict >= 0)
		return verdict;
	if (!iface || !(iface->flags & MST_IF_STRICT))
		return TC_PASS;
	if (verdict == SVC_TRANSLATED)
		return TC_PASS; /* a reply to us */
	if (!from)		/* the host itself */
		return isolated(w, iface) ? drop(skb, MST_REASON_ISOLATED,
						 MST_TO_CONTAINER)
					  : TC_PASS;
	if (src && src->network == iface->network && src->ifindex == from)
		return TC_PASS;
	if (host_answers(w, iface, src))
		return TC_PASS;
	if (ct_of_sent(w, &w->p.t))
		return TC_PASS; /* translated where it came from */
	if (snat_asked(skb, w)) {
		frag_remember(w, &w->p.t, 0);
		return TC_PASS;
	}
	return drop(skb, MST_REASON_ISOLATED, MST_TO_CONTAINER);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keeps types that only their users see in the object's BTF. */
const enum mst_reason *mst_keep_reason __attribute__((unused));
const enum mst_metric_dir *mst_keep_metric_dir __attribute__((unused));
const enum mst_dir *mst_keep_dir __attribute__((unused));
const enum mst_ct_state *mst_keep_ct_state __attribute__((unused));
const enum mst_service_flag *mst_keep_service_flag __attribute__((unused));
const enum mst_endpoint_flag *mst_keep_endpoint_flag __attribute__((unused));
const enum mst_interface_flag *mst_keep_interface_flag __attribute__((unused));
const enum mst_sandbox_flag *mst_keep_sandbox_flag __attribute__((unused));
const enum mst_sock_flag *mst_keep_sock_flag __attribute__((unused));
const enum mst_event_kind *mst_keep_event_kind __attribute__((unused));
const enum mst_path *mst_keep_path __attribute__((unused));
const struct mst_event *mst_keep_event __attribute__((unused));
const struct mst_sock *mst_keep_sock __attribute__((unused));
