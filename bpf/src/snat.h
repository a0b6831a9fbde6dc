/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* snat.h - flows that leave the host with an address of the host's. */
#ifndef MST_SNAT_H
#define MST_SNAT_H

#include "ct.h"
#include "lb.h"
#include "nat.h"
#include "tell.h"

/*
 * Source ports of masqueraded flows: above what the host's own sockets choose
 * from (ip_local_port_range ends at 60999 unless it was changed).
 */
#define SNAT_PORT_MIN	61000
#define SNAT_PORT_COUNT 4536
#define SNAT_TRIES	32

/*
 * How long a flow must have been silent for another of the same endpoint's to
 * have its port where none is free. The daemon collects flows later, and may
 * be away. RFC 4787 and 5382 ask for more of what is not closed than
 * SNAT_QUIET_DATAGRAMS, but the endpoint would get nothing else.
 */
#define SNAT_QUIET_CLOSED      (10 * SEC_NS)  /* by both sides */
#define SNAT_QUIET_DATAGRAMS   (30 * SEC_NS)  /* echoes as well */
#define SNAT_QUIET_NEW	       (120 * SEC_NS) /* half-closed as well */
#define SNAT_QUIET_ESTABLISHED (7440 * SEC_NS)

/* Does a socket of the host have the tuple on which the reply would arrive? */
static __always_inline bool snat_host_has(struct __sk_buff *skb, bool v6,
					  const struct mst_tuple *reply)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 len;

	if (v6) {
		__builtin_memcpy(t.ipv6.saddr, &reply->saddr, 16);
		__builtin_memcpy(t.ipv6.daddr, &reply->daddr, 16);
		t.ipv6.sport = reply->sport;
		t.ipv6.dport = reply->dport;
		len = sizeof(t.ipv6);
	} else {
		t.ipv4.saddr = reply->saddr.w[3];
		t.ipv4.daddr = reply->daddr.w[3];
		t.ipv4.sport = reply->sport;
		t.ipv4.dport = reply->dport;
		len = sizeof(t.ipv4);
	}
	if (reply->proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
	else if (reply->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

struct snat_claim {
	struct __sk_buff *skb;
	__u32 reason;
	__u32 owner; /* of the flow: it takes nobody else's port */
	bool full;   /* the owner may have no flow more */
	bool reuse;  /* a port that a silent flow has will do */
};

/*
 * What remains where the host's sockets choose from these ports, too
 * (ip_local_port_range was widened): a socket that connects to a server from a
 * port which a container's flow to the same server has claimed before. It gets
 * no answer and times out; the flow goes on. bind() is no help: nothing tells
 * there where the socket will connect to. `mustang status` would be the place
 * to say that the ranges meet.
 */

/* Undoes snat_quota: the flow did not come about. */
static __always_inline void snat_unquota(__u32 ifindex)
{
	__u32 *flows = bpf_map_lookup_elem(&mst_quotas_v1, &ifindex);

	if (flows && *flows)
		__sync_fetch_and_add(flows, -1);
}

/* Was a flow silent for long enough, both ways? */
static __always_inline bool snat_quiet(const struct mst_ct *there,
				       const struct mst_ct *back, __u8 proto)
{
	__u64 seen = there->seen > back->seen ? there->seen : back->seen;
	__u8 least = there->state < back->state ? there->state : back->state;
	__u8 most = there->state > back->state ? there->state : back->state;

	if (proto != IPPROTO_TCP)
		return older(seen, SNAT_QUIET_DATAGRAMS);
	if (least == MST_CT_CLOSING)
		return older(seen, SNAT_QUIET_CLOSED);
	if (most == MST_CT_ESTABLISHED)
		return older(seen, SNAT_QUIET_ESTABLISHED);
	return older(seen, SNAT_QUIET_NEW);
}

/*
 * Ends the owner's flow that comes back at key, if it was silent for long.
 * Of several that want its port the one has it who deletes the way there.
 */
static __always_inline bool snat_reuse(const struct work *w,
				       const struct mst_tuple *key,
				       const struct mst_ct *back, __u32 owner)
{
	const struct mst_ct *there;
	struct mst_tuple request = {};

	/* the endpoints of a private parent have one owner */
	if (back->backend != owner || !addr_eq(&back->daddr, &w->p.t.saddr))
		return false;
	request.saddr = back->daddr;
	request.daddr = back->saddr;
	request.sport = back->dport;
	request.dport = back->sport;
	request.proto = key->proto;
	request.dir = MST_DIR_REQUEST;
	there = bpf_map_lookup_elem(&mst_snat_v2, &request);
	if (!there || there->sport != key->dport ||
	    !addr_eq(&there->saddr, &key->daddr))
		return false;
	if (!snat_quiet(there, back, key->proto) ||
	    bpf_map_delete_elem(&mst_snat_v2, &request))
		return false;
	snat_unquota(owner);
	return true;
}

/* Claims a source port for w->p.t -> w->now by entering the way back. */
static long snat_try(__u32 i, struct snat_claim *claim)
{
	struct work *w = work();
	const struct mst_ct *had;
	const struct pkt *p;
	struct mst_tuple *key;
	__be16 port;
	int err; /* as in ct_create() */

	if (!w)
		return 1;
	p = &w->p;
	port = bpf_htons(SNAT_PORT_MIN +
			 bpf_get_prandom_u32() % SNAT_PORT_COUNT);
	w->now.sport = port;
	key = ct_reply_key(w, &w->now, p->t.proto);
	had = bpf_map_lookup_elem(&mst_snat_v2, key);
	if ((had && !claim->reuse) || (!had && claim->full) ||
	    snat_host_has(claim->skb, p->v6, key) ||
	    (had && !snat_reuse(w, key, had, claim->owner)))
		return 0;
	err = bpf_map_update_elem(&mst_snat_v2, key, &w->ct,
				  had ? BPF_ANY : BPF_NOEXIST);
	if (err == -EEXIST)
		return 0;
	claim->reason = err ? MST_REASON_SNAT_FULL : 0;
	return 1;
}

/*
 * Whose flow w->p begins: the endpoint's, by the device that is its own. All
 * endpoints of a private parent send by one.
 */
static __always_inline __u32 snat_owner(const struct __sk_buff *skb,
					const struct work *w)
{
	const struct mst_endpoint *src;
	__u32 ifindex = skb->ifindex;

	src = bpf_map_lookup_elem(&mst_endpoints_v1, &w->p.t.saddr);
	return src && src->ifindex ? src->ifindex : ifindex;
}

/* One flow more for the endpoint, or false if it has too many. */
static __always_inline bool snat_quota(__u32 ifindex)
{
	__u32 *flows, one = 1;

	flows = bpf_map_lookup_elem(&mst_quotas_v1, &ifindex);
	if (!flows)
		return bpf_map_update_elem(&mst_quotas_v1, &ifindex, &one,
					   BPF_ANY) == 0;
	if (*flows >= MST_SNAT_QUOTA)
		return false;
	__sync_fetch_and_add(flows, 1);
	return true;
}

/* Claims w->now as it is: nothing is translated, so nobody else has it. */
static __always_inline void snat_keep(struct work *w, struct snat_claim *claim)
{
	long err;

	err = bpf_map_update_elem(&mst_snat_v2,
				  ct_reply_key(w, &w->now, w->p.t.proto),
				  &w->ct, BPF_ANY);
	claim->reason = err ? MST_REASON_SNAT_FULL : 0;
}

/*
 * Enters the flow w->p.t -> w->now with its way back; 0 or a reason. An owner
 * that has as many flows as it may has this one in the place of a silent one.
 */
static __always_inline __u32 snat_enter(struct __sk_buff *skb, struct work *w,
					__u32 owner, bool full)
{
	struct snat_claim claim = {
		.skb = skb,
		.reason = MST_REASON_SNAT_PORTS,
		.owner = owner,
		.full = full,
	};
	struct mst_ct *ct = &w->ct;
	struct mst_tuple *key;

	__builtin_memset(ct, 0, sizeof(*ct));
	ct->saddr = w->p.t.daddr;
	ct->daddr = w->p.t.saddr;
	ct->sport = w->p.t.dport;
	ct->dport = w->p.t.sport;
	ct->backend = owner;
	ct->inside = lb_is_host(&w->p.t.daddr);
	ct->seen = clock();
	if (addr_eq(&w->now.saddr, &w->p.t.saddr)) {
		if (full)
			return MST_REASON_SNAT_QUOTA;
		snat_keep(w, &claim);
	} else if (!full) {
		bpf_loop(SNAT_TRIES, snat_try, &claim, 0);
	}
	if (claim.reason == MST_REASON_SNAT_PORTS) {
		claim.reuse = true;
		bpf_loop(SNAT_TRIES, snat_try, &claim, 0);
	}
	if (claim.reason)
		return full ? MST_REASON_SNAT_QUOTA : claim.reason;
	ct->saddr = w->now.saddr;
	ct->daddr = w->now.daddr;
	ct->sport = w->now.sport;
	ct->dport = w->now.dport;
	key = &w->key;
	*key = w->p.t;
	key->dir = MST_DIR_REQUEST;
	if (bpf_map_update_elem(&mst_snat_v2, key, ct, BPF_ANY) == 0)
		return 0;
	bpf_map_delete_elem(&mst_snat_v2,
			    ct_reply_key(w, &w->now, w->p.t.proto));
	return MST_REASON_SNAT_FULL;
}

/*
 * Enters a new flow from w->p.t to w->now, whose port is chosen unless its
 * address stays; 0 or a reason.
 */
__noinline int snat_create(struct __sk_buff *skb)
{
	struct work *w = work();
	__u32 owner, reason;
	bool full;

	if (!w)
		return MST_REASON_SNAT_FULL;
	owner = snat_owner(skb, w);
	full = !snat_quota(owner);
	reason = snat_enter(skb, w, owner, full);
	if (full && !reason)
		snat_quota(owner); /* for the one whose place it has */
	else if (!full && reason)
		snat_unquota(owner);
	if (!reason && watched())
		tell_flow(skb, MST_EVENT_NEW, MST_PATH_EGRESS, 0, 0);
	return reason;
}

/*
 * The flow's entry in this direction, refreshed. They end by collection, or
 * for another flow of their owner's (snat_reuse()).
 * A SYN, or its answer, begins a closed one anew.
 */
static __always_inline struct mst_ct *snat_lookup(struct pkt *p, __u8 dir)
{
	struct mst_ct *ct;

	p->t.dir = dir;
	ct = bpf_map_lookup_elem(&mst_snat_v2, &p->t);
	if (!ct)
		return NULL;
	if (p->t.proto == IPPROTO_TCP) {
		if (p->tcp_flags & TCP_SYN) {
			ct->state = MST_CT_NEW;
		} else if (p->tcp_flags & (TCP_FIN | TCP_RST)) {
			p->ends = ct->state != MST_CT_CLOSING;
			ct->state = MST_CT_CLOSING;
		} else if (ct->state == MST_CT_NEW) {
			ct->state = MST_CT_ESTABLISHED;
		}
	}
	ct->seen = clock();
	return ct;
}

/* Makes w->now what the flow's packets become in this direction. */
static __always_inline void snat_become(struct __sk_buff *skb, struct work *w,
					const struct mst_ct *ct)
{
	w->now.saddr = ct->saddr;
	w->now.daddr = ct->daddr;
	w->now.sport = ct->sport;
	w->now.dport = ct->dport;
	if (ends(&w->p) && watched())
		tell_flow(skb, MST_EVENT_END, MST_PATH_EGRESS, 0, 0);
}

/* Has the packet what a masqueraded flow is known by? */
static __always_inline bool snat_can(const struct pkt *p)
{
	return p->t.proto == IPPROTO_TCP || p->t.proto == IPPROTO_UDP ||
	       is_echo(p);
}

/* Does a container answer the ping of somebody outside who may ping it? */
static __always_inline bool snat_answers(const struct pkt *p)
{
	const struct mst_endpoint *src;

	if (!is_echo_reply(p))
		return false;
	src = bpf_map_lookup_elem(&mst_endpoints_v1, &p->t.saddr);
	return src && src->flags & (MST_EP_OPEN | MST_EP_PING);
}

/*
 * An endpoint tells a server that what it sent did not arrive: the server
 * knows the flow by the address and port that it was masqueraded with.
 */
static __always_inline __u32 snat_error(struct __sk_buff *skb, struct work *w)
{
	const struct mst_tuple *quote = &w->inner.t;
	struct mst_tuple *key;
	const struct mst_ct *ct;

	if (!quoted(skb, w) || !addr_eq(&quote->daddr, &w->p.t.saddr))
		return MST_REASON_NO_ROUTE;
	key = ct_reply_key(w, quote, quote->proto);
	key->dir = MST_DIR_REQUEST;
	ct = bpf_map_lookup_elem(&mst_snat_v2, key);
	if (!ct)
		return MST_REASON_NO_ROUTE;
	w->known.saddr = ct->daddr;
	w->known.daddr = ct->saddr;
	w->known.sport = ct->dport;
	w->known.dport = ct->sport;
	w->now.saddr = ct->saddr;
	w->now.daddr = w->p.t.daddr;
	return nat_icmp_error(skb) ? MST_REASON_NAT_FAILED : 0;
}

/* A later fragment of a flow that leaves. */
static __always_inline __u32 snat_fragment(struct __sk_buff *skb,
					   struct work *w)
{
	const struct mst_frag *f;

	f = bpf_map_lookup_elem(&mst_frags_v1, frag_key(w, MST_FRAG_LEAVES));
	if (!f)
		return MST_REASON_NO_FRAGMENT_HEAD;
	w->now.saddr = f->saddr;
	w->now.daddr = f->daddr;
	return nat_tuple(skb) ? MST_REASON_NAT_FAILED : 0;
}

/* Gives what leaves by an uplink the uplink's address; 0 or a reason. */
__noinline int snat_out(struct __sk_buff *skb, const struct mst_uplink *uplink)
{
	const struct mst_addr *addr;
	struct work *w = work();
	const struct mst_ct *ct;
	__u32 reason;

	if (!w || !uplink)
		return MST_REASON_SNAT_FULL;
	if (w->p.frag == FRAG_LATER)
		return snat_fragment(skb, w);
	if (!w->p.frag && is_icmp_error(&w->p))
		return snat_error(skb, w);
	if (!snat_can(&w->p)) {
		if (!snat_answers(&w->p))
			return MST_REASON_NO_ROUTE;
		frag_enter(w, &w->p.t, 0, MST_FRAG_LEAVES);
		return 0;
	}
	ct = snat_lookup(&w->p, MST_DIR_REQUEST);
	addr = w->p.v6 ? &uplink->snat6 : &uplink->snat4;
	/* a flow that began while another address was the uplink's is over */
	if (ct && !addr_eq(&ct->saddr, addr))
		ct = NULL;
	if (ct) {
		snat_become(skb, w, ct);
	} else {
		if (addr_zero(addr))
			return MST_REASON_NO_ROUTE;
		w->now = w->p.t;
		w->now.saddr = *addr;
		reason = snat_create(skb);
		if (reason)
			return reason;
	}
	frag_enter(w, &w->now, 0, MST_FRAG_LEAVES);
	return nat_tuple(skb) ? MST_REASON_NAT_FAILED : 0;
}

/*
 * Enters a flow that leaves with its own address, so that its answers are
 * known for what they are when they come; 0 or a reason.
 */
__noinline int snat_track(struct __sk_buff *skb)
{
	struct work *w = work();
	const struct mst_ct *ct;
	__u32 reason;

	if (!w)
		return MST_REASON_SNAT_FULL;
	if (w->p.frag == FRAG_LATER || (is_icmp(&w->p) && !is_echo(&w->p)))
		return 0;
	ct = snat_lookup(&w->p, MST_DIR_REQUEST);
	if (ct && addr_eq(&ct->saddr, &w->p.t.saddr)) {
		snat_become(skb, w, ct);
		return 0;
	}
	w->now = w->p.t;
	reason = snat_create(skb);
	return reason;
}

/*
 * Enters a flow of datagrams to the host, whose stack may send them on, as to a
 * port that Docker's own bridge publishes. Without room for it none such come
 * back, and those of the host itself do.
 */
__noinline int snat_track_to_host(struct __sk_buff *skb,
				  const struct mst_interface *iface)
{
	struct work *w = work();

	if (!w || !iface || !(iface->flags & MST_IF_EGRESS) ||
	    w->p.t.proto != IPPROTO_UDP)
		return 0;
	return snat_track(skb);
}

/*
 * Is the packet part of a flow that its destination began, or an error about
 * one? The tuple is looked for as the container knows it.
 */
static __always_inline bool snat_asked(struct __sk_buff *skb, struct work *w)
{
	struct mst_tuple *key;

	if (!w->p.frag && is_icmp_error(&w->p)) {
		if (!quoted(skb, w) ||
		    !addr_eq(&w->inner.t.saddr, &w->p.t.daddr))
			return false;
		key = &w->key;
		*key = w->inner.t;
	} else {
		key = ct_reply_key(w, &w->p.t, w->p.t.proto);
	}
	key->dir = MST_DIR_REQUEST;
	return bpf_map_lookup_elem(&mst_snat_v2, key);
}

#endif /* MST_SNAT_H */
