/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* answer.h - packets that the datapath sends back itself. */
#ifndef MST_ANSWER_H
#define MST_ANSWER_H

#include "csum.h"
#include "maps.h"
#include "parse.h"
#include "tell.h"

enum {
	TC_PASS = 0, /* TC_ACT_OK: to the next program and the stack */
	TC_DROP = 2, /* TC_ACT_SHOT */
};

/*
 * In cb[0], which no sandbox can write: a program of ours has let the packet
 * go out by the host's slave.
 */
#define VOUCHED 0x6d737402

/*
 * lxc_ingress runs on the ingress of an endpoint's host end, or, attached
 * inside a sandbox, on the egress of its slave. skb->ingress_ifindex tells
 * them apart: at an ingress hook it is the device itself.
 */
static __always_inline bool at_ingress(const struct __sk_buff *skb)
{
	return skb->ingress_ifindex == skb->ifindex;
}

/* Sends the packet out by the host's slave or netkit device via. */
static __always_inline int send_by(struct __sk_buff *skb, __u32 via)
{
	skb->cb[0] = VOUCHED;
	return bpf_redirect(via, 0);
}

/* Sends the rewritten packet back to where it came from. */
static __always_inline int send_back(struct __sk_buff *skb)
{
	const struct work *w = work();

	if (!w)
		return TC_DROP;
	switch (w->place) {
	case PLACE_HOST:
		return bpf_redirect_peer(skb->ifindex, 0);
	case PLACE_UPLINK:
		return bpf_redirect(skb->ifindex, 0);
	case PLACE_NETKIT:
	case PLACE_SLAVE:
		return send_by(skb, w->via);
	}
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

static __always_inline int swap_macs(struct __sk_buff *skb, const struct pkt *p)
{
	__u8 macs[12], swapped[12];

	if (p->l3 == L2_NONE)
		return 0;
	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return -1;
	__builtin_memcpy(swapped, macs + 6, 6);
	__builtin_memcpy(swapped + 6, macs, 6);
	return bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
}

static __noinline int drop(struct __sk_buff *skb, __u32 reason, __u32 dir)
{
	count(reason, dir, skb->ifindex, skb->len);
	if (watched())
		tell_drop(skb, MST_EVENT_DROP, reason, dir);
	return TC_DROP;
}

struct pseudo6 {
	struct mst_addr saddr;
	struct mst_addr daddr;
	__be32 len;
	__be32 proto;
};

struct pseudo4 {
	__be32 saddr;
	__be32 daddr;
	__be16 proto;
	__be16 len;
};

/* Sum of the pseudo header of an answer to p, for a checksum over len bytes. */
static __always_inline __s64 pseudo_sum(const struct pkt *p, __u16 len,
					__u8 proto)
{
	struct pseudo6 h6 = {};
	struct pseudo4 h4 = {};

	if (p->v6) {
		h6.saddr = p->t.daddr;
		h6.daddr = p->t.saddr;
		h6.len = bpf_htonl(len);
		h6.proto = bpf_htonl(proto);
		return bpf_csum_diff(NULL, 0, (__be32 *)&h6, sizeof(h6), 0);
	}
	h4.saddr = p->t.daddr.w[3];
	h4.daddr = p->t.saddr.w[3];
	h4.proto = bpf_htons(proto);
	h4.len = bpf_htons(len);
	return bpf_csum_diff(NULL, 0, (__be32 *)&h4, sizeof(h4), 0);
}

/* Writes the IP header of an answer to p with len bytes of payload.
 */
static __always_inline int put_ip(struct __sk_buff *skb, const struct pkt *p,
				  __u16 len, __u8 proto)
{
	struct iphdr ip4 = {};
	struct ipv6hdr ip6 = {};

	if (p->v6) {
		ip6.version = 6;
		ip6.payload_len = bpf_htons(len);
		ip6.nexthdr = proto;
		ip6.hop_limit = 64;
		__builtin_memcpy(&ip6.saddr, &p->t.daddr, 16);
		__builtin_memcpy(&ip6.daddr, &p->t.saddr, 16);
		return bpf_skb_store_bytes(skb, p->l3, &ip6, sizeof(ip6), 0);
	}
	ip4.version = 4;
	ip4.ihl = 5;
	ip4.tot_len = bpf_htons(sizeof(ip4) + len);
	ip4.ttl = 64;
	ip4.protocol = proto;
	ip4.saddr = p->t.daddr.w[3];
	ip4.daddr = p->t.saddr.w[3];
	ip4.check =
		fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip4, sizeof(ip4), 0));
	return bpf_skb_store_bytes(skb, p->l3, &ip4, sizeof(ip4), 0);
}

static __always_inline __u32 ip_len(const struct pkt *p)
{
	return p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

struct rst {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 off;
	__u8 flags;
	__be16 window;
	__be16 csum;
	__be16 urgent;
};

/* Answers the TCP segment p with a reset (RFC 9293, 3.5.2). */
__noinline int answer_rst(struct __sk_buff *skb)
{
	struct work *w = work();
	struct pkt *p;
	struct rst in, out = {};
	__u32 payload, l4;

	if (!w)
		return TC_DROP;
	p = &w->p;
	l4 = p->l3 + ip_len(p);
	if (p->tcp_flags & TCP_RST)
		return TC_DROP;
	if (bpf_skb_load_bytes(skb, p->l4, &in, sizeof(in)))
		return TC_DROP;
	out.sport = in.dport;
	out.dport = in.sport;
	out.off = 5 << 4;
	out.flags = TCP_RST;
	if (p->tcp_flags & TCP_ACK) {
		out.seq = in.ack;
	} else {
		payload = p->end - p->l4 - (in.off >> 4) * 4;
		if (p->tcp_flags & TCP_SYN)
			payload++;
		if (p->tcp_flags & TCP_FIN)
			payload++;
		out.ack = bpf_htonl(bpf_ntohl(in.seq) + payload);
		out.flags |= TCP_ACK;
	}
	out.csum = fold(bpf_csum_diff(NULL, 0, (__be32 *)&out, sizeof(out),
				      pseudo_sum(p, sizeof(out), IPPROTO_TCP)));
	if (bpf_skb_change_tail(skb, l4 + sizeof(out), 0) ||
	    swap_macs(skb, p) || put_ip(skb, p, sizeof(out), IPPROTO_TCP) ||
	    bpf_skb_store_bytes(skb, l4, &out, sizeof(out), 0))
		return TC_DROP;
	return send_back(skb);
}

/* What an ICMP error says, in the terms of its family. */
enum unreach {
	UNREACH_HOST,
	UNREACH_PORT,
	UNREACH_TOO_BIG, /* of the MTU in w->mtu */
	UNREACH_TTL,
};

static __always_inline void unreach_msg(struct unreach_msg *msg, bool v6,
					__u32 how, __u32 mtu)
{
	if (v6) {
		msg->type = ICMP6_UNREACH;
		msg->code = how == UNREACH_PORT ? 4 : 3;
		if (how == UNREACH_TOO_BIG) {
			msg->type = ICMP6_TOO_BIG;
			msg->code = 0;
			msg->info = bpf_htonl(mtu);
		} else if (how == UNREACH_TTL) {
			msg->type = ICMP6_TIME_EXCEEDED;
			msg->code = 0;
		}
		return;
	}
	msg->type = ICMP4_UNREACH;
	msg->code = how == UNREACH_PORT ? 3 : 1;
	if (how == UNREACH_TOO_BIG) {
		msg->code = 4;
		msg->info = bpf_htonl(mtu); /* in its second half */
	} else if (how == UNREACH_TTL) {
		msg->type = ICMP4_TIME_EXCEEDED;
		msg->code = 0;
	}
}

/* Answers p with an ICMP error. */
__noinline int answer_unreach(struct __sk_buff *skb, __u32 how)
{
	struct work *w = work();
	struct unreach_msg *msg;
	__u32 l4, len, quote;
	struct pkt *p;
	__s64 sum = 0;
	__u8 proto;

	if (!w)
		return TC_DROP;
	p = &w->p;
	l4 = p->l3 + ip_len(p);
	quote = p->l4 - p->l3;
	if (quote > QUOTE_MAX - 8)
		quote = QUOTE_MAX - 8;
	quote += 8;
	len = 8 + quote;
	proto = p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP;
	msg = &w->msg;
	__builtin_memset(msg, 0, sizeof(*msg));
	if (bpf_skb_load_bytes(skb, p->l3, msg->quote, quote))
		return TC_DROP;
	unreach_msg(msg, p->v6, how, w->mtu);
	if (p->v6)
		sum = pseudo_sum(p, len, proto);
	/* what is beyond the quote is zero and changes no sum */
	msg->csum =
		fold(bpf_csum_diff(NULL, 0, (__be32 *)msg, sizeof(*msg), sum));
	if (bpf_skb_change_tail(skb, l4 + len, 0) || swap_macs(skb, p) ||
	    put_ip(skb, p, len, proto) ||
	    bpf_skb_store_bytes(skb, l4, msg, len, 0))
		return TC_DROP;
	return send_back(skb);
}

/* Refuses p: a reset for TCP, an ICMP error for all else that may have one. */
__noinline int refuse(struct __sk_buff *skb, __u32 reason, __u32 how)
{
	struct work *w = work();
	struct pkt *p;
	__u32 dir;

	if (!w)
		return TC_DROP;
	p = &w->p;
	dir = w->place == PLACE_UPLINK ? MST_TO_CONTAINER : MST_FROM_CONTAINER;
	count(reason, dir, skb->ifindex, skb->len);
	if (watched())
		tell_drop(skb, MST_EVENT_REFUSE, reason, dir);
	if (p->frag == FRAG_LATER || is_icmp_error(p))
		return TC_DROP;
	if (p->t.proto == IPPROTO_TCP && how == UNREACH_PORT)
		return answer_rst(skb);
	return answer_unreach(skb, how);
}

/* Answers an echo request. The payload stays: only type and addresses change.
 */
__noinline int answer_echo(struct __sk_buff *skb)
{
	struct work *w = work();
	struct mst_addr addrs[2];
	__be32 ips[2];
	struct pkt *p;
	__u16 from, to;
	__u8 type;

	if (!w)
		return TC_DROP;
	p = &w->p;
	from = p->icmp_type; /* type and code as one word */
	to = p->v6 ? ICMP6_ECHO_REPLY : ICMP4_ECHO_REPLY;
	type = (__u8)to;
	if (bpf_l4_csum_replace(skb, p->l4 + 2, from, to, sizeof(to)) ||
	    bpf_skb_store_bytes(skb, p->l4, &type, sizeof(type), 0) ||
	    swap_macs(skb, p))
		return TC_DROP;
	/* swapping two addresses leaves every checksum over both as it is */
	if (p->v6) {
		addrs[0] = p->t.daddr;
		addrs[1] = p->t.saddr;
		if (bpf_skb_store_bytes(skb, p->l3 + 8, addrs, sizeof(addrs),
					0))
			return TC_DROP;
	} else {
		ips[0] = p->t.daddr.w[3];
		ips[1] = p->t.saddr.w[3];
		if (bpf_skb_store_bytes(skb, p->l3 + 12, ips, sizeof(ips), 0))
			return TC_DROP;
	}
	return send_back(skb);
}

#endif /* MST_ANSWER_H */
