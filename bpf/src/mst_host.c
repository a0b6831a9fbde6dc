// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * mst_host.c - what comes to the host from outside.
 *
 * host_ingress sees a device that leads out before the host's stack and its
 * firewall do: replies to flows that left masqueraded, and what is for
 * published ports, go straight into the sandbox. All else passes untouched.
 */
#include "deliver.h"
#include "published.h"
#include "snat.h"

/* Into the sandbox of the endpoint that w->p is for now. */
static __always_inline int enter(struct __sk_buff *skb, struct work *w)
{
	const struct mst_endpoint *dst;

	dst = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.daddr);
	if (!dst || !reaches(dst, w->place))
		return TC_PASS;
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
	snat_become(w, ct);
	frag_remember(&w->p, &w->now);
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
	ct = bpf_map_lookup_elem(&mst_snat_v1, ct_reply_key(w, &w->inner.t,
							    w->inner.t.proto));
	if (!ct)
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
 * Is what has no ports for a container nonetheless? All else at a container's
 * own address is the stack's to forward, and lxc_egress's to stop.
 */
static __always_inline bool is_open(const struct work *w)
{
	const struct mst_endpoint *dst;

	if (w->p.t.proto == IPPROTO_TCP || w->p.t.proto == IPPROTO_UDP)
		return false; /* publish() has judged */
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

SEC("host-ingress")
int host_ingress(struct __sk_buff *skb)
{
	struct work *w = work();
	int verdict;

	if (!w || skb->vlan_present ||
	    (skb->protocol != bpf_htons(ETH_P_IP) &&
	     skb->protocol != bpf_htons(ETH_P_IPV6)))
		return TC_PASS;
	w->place = PLACE_UPLINK;
	w->network = 0;
	if (parse(skb))
		return TC_PASS;
	w->sender = w->p.t.saddr;
	if (lb_in_pool(&w->p.t.daddr) || is_martian(w))
		return drop(skb, MST_REASON_OFF_HOST, MST_TO_CONTAINER);
	if (w->p.frag == FRAG_LATER) {
		verdict = svc_fragment(skb, w);
	} else if (!w->p.frag && is_icmp_error(&w->p)) {
		verdict = unmasquerade_error(skb, w);
		if (verdict == SVC_UNTOUCHED)
			verdict = svc_icmp_error(skb);
	} else {
		verdict = unmasquerade(skb, w);
		if (verdict == SVC_UNTOUCHED)
			verdict = publish(skb);
	}
	if (verdict >= 0)
		return verdict;
	if (verdict == SVC_UNTOUCHED && !is_open(w))
		return TC_PASS;
	return enter(skb, w);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
