/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* parse.h - from a frame to its tuple. */
#ifndef MST_PARSE_H
#define MST_PARSE_H

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "maps.h"

#define VLAN_VID 0x0fff

#define IP_MF	   0x2000
#define IP_OFFSET  0x1fff
#define IP6_MF	   0x0001
#define IP6_OFFSET 0xfff8

#define IPPROTO_HOPOPTS	 0
#define IPPROTO_ROUTING	 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_DSTOPTS	 60
#define EXT_HEADERS	 6 /* looked through; a longer chain is malformed */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define ICMP4_ECHO_REPLY    0
#define ICMP4_UNREACH	    3
#define ICMP4_REDIRECT	    5
#define ICMP4_ECHO	    8
#define ICMP4_TIME_EXCEEDED 11
#define ICMP4_PARAM	    12
#define ICMP6_UNREACH	    1
#define ICMP6_TOO_BIG	    2
#define ICMP6_TIME_EXCEEDED 3
#define ICMP6_PARAM	    4
#define ICMP6_ECHO	    128
#define ICMP6_ECHO_REPLY    129
#define ICMP6_MLD_QUERY	    130
#define ICMP6_RA	    134
#define ICMP6_NS	    135
#define ICMP6_NA	    136
#define ICMP6_REDIRECT	    137

struct arp {
	__be16 htype;
	__be16 ptype;
	__u8 hlen;
	__u8 plen;
	__be16 op;
	__u8 smac[6];
	__u8 sip[4];
	__u8 tmac[6];
	__u8 tip[4];
};

#define ARP_ETHERNET bpf_htons(1)
#define ARP_REQUEST  bpf_htons(1)
#define ARP_REPLY    bpf_htons(2)

enum frag {
	FRAG_NONE,
	FRAG_FIRST,
	FRAG_LATER, /* has no ports */
};

/* Offsets are from the start of the frame. */
struct pkt {
	struct mst_tuple t; /* ports; an echo's id is its asker's port */
	__be32 frag_id;
	__u32 end; /* of the IP packet: Ethernet may have padded the frame */
	__u16 l3;
	__u16 l4;
	__u8 v6;
	__u8 frag;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 l4_len; /* of the TCP or UDP header */
	__u8 ends;   /* is the first that closes its flow in its direction */
	__u8 ttl;
	__u8 protocol; /* IPv4: the byte between ttl and csum */
	__sum16 csum;  /* IPv4: of the header */
};

/* The quote is the headers and 64 bits more (RFC 792), if these are so short.
 */
#define QUOTE_MAX 96

struct unreach_msg {
	__u8 type;
	__u8 code;
	__be16 csum;
	__be32 info; /* an MTU, or nothing */
	__u8 quote[QUOTE_MAX];
};

/* Where a program runs that judges what a container sends. */
enum place {
	PLACE_HOST,    /* ingress of the host's end of a veth pair */
	PLACE_NETKIT,  /* transmission of a netkit device, as its other end */
	PLACE_SANDBOX, /* egress of a slave inside the sandbox */
	PLACE_UPLINK,  /* ingress of a device that leads out */
	PLACE_SLAVE, /* ingress of the host's slave, or of its private parent */
};

/* What translation writes of an IPv4 packet at once: the ports may come next.
 */
struct nat_head {
	__u16 pad;
	__sum16 csum;
	__be32 saddr;
	__be32 daddr;
	__be16 ports[2];
};

/*
 * What one packet needs while it is looked at, in a per-CPU map: too much for
 * the 512 bytes of stack that a chain of calls shares. Functions get it with
 * work() each: kernel 6.1 takes no key of a map from an argument's memory.
 */
struct work {
	struct pkt p;
	struct pkt inner;	/* what an ICMP error quotes */
	struct mst_tuple now;	/* what p becomes */
	struct mst_tuple known; /* what inner becomes */
	struct mst_tuple key;
	struct mst_ct ct;
	struct mst_service_key service;
	struct mst_frag_key frag_key;
	struct mst_frag frag;
	struct unreach_msg msg;
	struct nat_head head;
	struct mst_addr sender; /* source of p as it came */
	struct mst_tuple came;	/* p as it came, when it was translated */
	__u32 network;		/* of the sender; 0: no endpoint of one */
	__u32 place;		/* enum place */
	__u32 mtu;		/* of the way out, for too large packets */
	__u32 uplink;		/* of the flow that p is an answer of */
	__u32 via;   /* ifindex of the host's slave, or netkit device */
	__u32 reply; /* p answers a flow to a service */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} mst_work SEC(".maps");

static __always_inline struct work *work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&mst_work, &zero);
}

/* Length of what comes before the IP header: of Ethernet, or nothing at all on
 * a device without one (tun, WireGuard, PPP).
 */
#define L2_LEN	ETH_HLEN
#define L2_NONE 0

static __always_inline __u32 parse4(struct __sk_buff *skb, struct pkt *p)
{
	struct iphdr ip;
	__u32 len, hlen;

	if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)))
		return MST_REASON_MALFORMED;
	hlen = ip.ihl * 4;
	len = bpf_ntohs(ip.tot_len);
	if (ip.version != 4 || hlen < sizeof(ip))
		return MST_REASON_MALFORMED;
	/* a segment over 64 KiB (BIG TCP) carries the length 0 */
	if ((len || !skb->gso_size) && (len < hlen || p->l3 + len > skb->len))
		return MST_REASON_MALFORMED;
	p->t.saddr = addr4(ip.saddr);
	p->t.daddr = addr4(ip.daddr);
	p->t.proto = ip.protocol;
	p->ttl = ip.ttl;
	p->protocol = ip.protocol;
	p->csum = ip.check;
	p->l4 = p->l3 + hlen;
	p->end = len ? p->l3 + len : skb->len;
	if (ip.frag_off & bpf_htons(IP_OFFSET | IP_MF)) {
		p->frag = ip.frag_off & bpf_htons(IP_OFFSET) ? FRAG_LATER
							     : FRAG_FIRST;
		p->frag_id = (__be32)ip.id;
	}
	return 0;
}

static __always_inline __u32 parse6(struct __sk_buff *skb, struct pkt *p)
{
	struct ipv6hdr ip;
	struct {
		__u8 next;
		__u8 len;
		__be16 off;
		__be32 id;
	} ext;
	__u32 off = p->l3 + sizeof(ip);
	__u8 next;
	int i;

	if (bpf_skb_load_bytes(skb, p->l3, &ip, sizeof(ip)) || ip.version != 6)
		return MST_REASON_MALFORMED;
	p->end = off + bpf_ntohs(ip.payload_len);
	if (p->end > skb->len)
		return MST_REASON_MALFORMED;
	if (!ip.payload_len && skb->gso_size)
		p->end = skb->len; /* BIG TCP, as in IPv4 */
	__builtin_memcpy(&p->t.saddr, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(&p->t.daddr, &ip.daddr, sizeof(ip.daddr));
	/* mapped addresses are ours to mean IPv4 and never on the wire */
	if (addr_is4(&p->t.saddr) || addr_is4(&p->t.daddr))
		return MST_REASON_MALFORMED;
	p->ttl = ip.hop_limit;
	next = ip.nexthdr;
	/* no loop: kernel 6.1 refuses a back edge that is no jump */
#pragma clang loop unroll(full)
	for (i = 0; i <= EXT_HEADERS; i++) {
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
			break;
		if (p->frag == FRAG_LATER)
			break;
		if (i == EXT_HEADERS)
			return MST_REASON_MALFORMED;
		if (bpf_skb_load_bytes(skb, off, &ext, sizeof(ext)))
			return MST_REASON_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			p->frag_id = ext.id;
			if (ext.off & bpf_htons(IP6_OFFSET))
				p->frag = FRAG_LATER;
			else if (ext.off & bpf_htons(IP6_MF))
				p->frag = FRAG_FIRST;
			off += 8;
		} else {
			off += (ext.len + 1) * 8;
		}
		next = ext.next;
	}
	p->t.proto = next;
	p->l4 = off;
	return 0;
}

/* A ping, or the head of one in fragments. */
static __always_inline bool is_echo(const struct pkt *p)
{
	if (p->frag == FRAG_LATER)
		return false;
	return p->v6 ? p->t.proto == IPPROTO_ICMPV6 &&
			       p->icmp_type == ICMP6_ECHO
		     : p->t.proto == IPPROTO_ICMP && p->icmp_type == ICMP4_ECHO;
}

static __always_inline bool is_echo_reply(const struct pkt *p)
{
	if (p->frag == FRAG_LATER)
		return false;
	return p->v6 ? p->t.proto == IPPROTO_ICMPV6 &&
			       p->icmp_type == ICMP6_ECHO_REPLY
		     : p->t.proto == IPPROTO_ICMP &&
			       p->icmp_type == ICMP4_ECHO_REPLY;
}

/* Fills w->p from the frame, whose IP header is at l2; a reason to drop it, or
 * 0. */
__noinline int parse(struct __sk_buff *skb, __u32 l2)
{
	struct work *w = work();
	struct pkt *p;
	__be16 ports[2];
	__u32 reason;
	__u8 tcp[20];

	if (!w)
		return MST_REASON_MALFORMED;
	p = &w->p;
	__builtin_memset(p, 0, sizeof(*p));
	p->l3 = l2;
	p->v6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	reason = p->v6 ? parse6(skb, p) : parse4(skb, p);
	if (reason || p->frag == FRAG_LATER)
		return reason;
	switch (p->t.proto) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, p->l4, tcp, sizeof(tcp)) ||
		    (tcp[12] >> 4) < 5 || p->l4 + (tcp[12] >> 4) * 4 > p->end)
			return MST_REASON_MALFORMED;
		__builtin_memcpy(ports, tcp, sizeof(ports));
		p->tcp_flags = tcp[13];
		p->l4_len = (tcp[12] >> 4) * 4;
		break;
	case IPPROTO_UDP:
		if (bpf_skb_load_bytes(skb, p->l4, tcp, 8) ||
		    p->l4 + 8 > p->end)
			return MST_REASON_MALFORMED;
		__builtin_memcpy(ports, tcp, sizeof(ports));
		p->l4_len = 8;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (bpf_skb_load_bytes(skb, p->l4, tcp, 8) ||
		    p->l4 + 8 > p->end)
			return MST_REASON_MALFORMED;
		p->icmp_type = tcp[0];
		__builtin_memcpy(ports, tcp + 4, sizeof(ports[0]));
		if (is_echo(p))
			p->t.sport = ports[0];
		else if (is_echo_reply(p))
			p->t.dport = ports[0];
		return 0;
	default:
		return 0;
	}
	p->t.sport = ports[0];
	p->t.dport = ports[1];
	return 0;
}

static __always_inline bool is_multicast(const struct pkt *p)
{
	__be32 ip = p->t.daddr.w[3];

	if (p->v6)
		return (p->t.daddr.w[0] & bpf_htonl(0xff000000)) ==
		       bpf_htonl(0xff000000);
	return (ip & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
	       ip == 0xffffffff;
}

/* The first segment of a TCP connection. */
static __always_inline bool is_syn(const struct pkt *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* An ICMP message that quotes the packet it is about. */
static __always_inline bool is_icmp_error(const struct pkt *p)
{
	if (p->frag == FRAG_LATER)
		return false;
	if (p->v6)
		return p->t.proto == IPPROTO_ICMPV6 &&
		       p->icmp_type >= ICMP6_UNREACH &&
		       p->icmp_type <= ICMP6_PARAM;
	return p->t.proto == IPPROTO_ICMP &&
	       (p->icmp_type == ICMP4_UNREACH ||
		p->icmp_type == ICMP4_TIME_EXCEEDED ||
		p->icmp_type == ICMP4_PARAM);
}

/* Reads the ports of a quoted packet; false if it has none, or no id. */
static __always_inline bool quoted_ports(struct __sk_buff *skb,
					 const struct pkt *p, struct pkt *inner)
{
	__be16 l4[4];

	/* beyond the packet is what Ethernet padded it with */
	if (inner->l4 + sizeof(l4) > p->end ||
	    bpf_skb_load_bytes(skb, inner->l4, l4, sizeof(l4)))
		return false;
	switch (inner->t.proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		inner->t.sport = l4[0];
		inner->t.dport = l4[1];
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		inner->icmp_type = (__u8)(bpf_ntohs(l4[0]) >> 8);
		if (is_echo(inner))
			inner->t.sport = l4[2];
		else if (is_echo_reply(inner))
			inner->t.dport = l4[2];
		else
			return false;
		return true;
	}
	return false;
}

/* Reads the packet that an ICMP error quotes; false if it is no flow of ours.
 */
static __always_inline bool quoted(struct __sk_buff *skb, struct work *w)
{
	const struct pkt *p = &w->p;
	struct pkt *inner = &w->inner;
	struct iphdr ip4;
	struct ipv6hdr ip6;
	struct {
		__u8 next;
		__u8 pad;
		__be16 off;
		__be32 id;
	} frag;

	__builtin_memset(inner, 0, sizeof(*inner));
	inner->l3 = p->l4 + 8;
	inner->v6 = p->v6;
	if (p->v6) {
		if (bpf_skb_load_bytes(skb, inner->l3, &ip6, sizeof(ip6)) ||
		    ip6.version != 6)
			return false;
		__builtin_memcpy(&inner->t.saddr, &ip6.saddr, 16);
		__builtin_memcpy(&inner->t.daddr, &ip6.daddr, 16);
		inner->t.proto = ip6.nexthdr;
		inner->l4 = inner->l3 + sizeof(ip6);
		if (ip6.nexthdr == IPPROTO_FRAGMENT) {
			if (bpf_skb_load_bytes(skb, inner->l4, &frag,
					       sizeof(frag)) ||
			    frag.off & bpf_htons(IP6_OFFSET))
				return false;
			inner->t.proto = frag.next;
			inner->l4 += sizeof(frag);
		}
	} else {
		if (bpf_skb_load_bytes(skb, inner->l3, &ip4, sizeof(ip4)) ||
		    ip4.version != 4 || ip4.ihl < 5 ||
		    ip4.frag_off & bpf_htons(IP_OFFSET))
			return false;
		inner->t.saddr = addr4(ip4.saddr);
		inner->t.daddr = addr4(ip4.daddr);
		inner->t.proto = ip4.protocol;
		inner->l4 = inner->l3 + ip4.ihl * 4;
	}
	return quoted_ports(skb, p, inner);
}

#endif /* MST_PARSE_H */
