/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ct.h - which backend a per-packet flow has, both ways. */
#ifndef MST_CT_H
#define MST_CT_H

#include "maps.h"
#include "parse.h"

#define SEC_NS 1000000000ULL

/*
 * How long a flow may be silent: the least that RFC 5382 (REQ-5) and RFC 4787
 * (REQ-5) ask for, so that a stream lives from one keepalive of Linux' to the
 * next, which is two hours. CT_NEW is less on purpose: a SYN that is repeated
 * later may go to another backend.
 */
#define CT_NEW	       (20 * SEC_NS)
#define CT_CLOSING     (240 * SEC_NS) /* of the direction that has closed */
#define CT_ESTABLISHED (7440 * SEC_NS)
#define CT_DATAGRAMS   (120 * SEC_NS)

static __always_inline __u64 ct_timeout(const struct mst_ct *ct, __u8 proto)
{
	if (proto == IPPROTO_UDP)
		return CT_DATAGRAMS;
	switch (ct->state) {
	case MST_CT_NEW:
		return CT_NEW;
	case MST_CT_CLOSING:
		return CT_CLOSING;
	}
	return CT_ESTABLISHED;
}

/* May any flow be alive? */
static __always_inline bool ct_in_use(void)
{
	__u32 zero = 0;
	const __u64 *last = bpf_map_lookup_elem(&mst_translated_v1, &zero);

	return !last || (*last && !older(*last, CT_ESTABLISHED + SEC_NS));
}

/* Remembers that a flow is alive, to the second: the line is shared. */
static __always_inline void ct_used(__u64 now)
{
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&mst_translated_v1, &zero);

	if (last && (__s64)(now - *last) > (__s64)SEC_NS)
		*last = now;
}

/* Has the flow ended, or not been heard of for too long? */
static __always_inline bool ct_over(const struct mst_ct *ct, __u8 proto)
{
	return ct->state == MST_CT_CLOSING ||
	       older(ct->seen, ct_timeout(ct, proto));
}

/*
 * The flow of w->p, whose entry is ct, is alive in both directions as long as
 * either is used: who sends datagrams one way for long may be answered, and who
 * is sent them stays with its backend. Noted to the second: the lines are
 * shared.
 */
static __always_inline void ct_heard(struct work *w, struct mst_ct *ct)
{
	const struct mst_tuple *t = &w->p.t;
	struct mst_tuple *key = &w->key;
	__u64 now = clock();
	struct mst_ct *back;

	if ((__s64)(now - ct->seen) <= (__s64)SEC_NS)
		return;
	ct->seen = now;
	ct_used(now);
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = ct->daddr;
	key->daddr = ct->saddr;
	key->sport = ct->dport;
	key->dport = ct->sport;
	key->proto = t->proto;
	key->dir = t->dir == MST_DIR_REQUEST ? MST_DIR_REPLY : MST_DIR_REQUEST;
	back = bpf_map_lookup_elem(&mst_ct_v2, key);
	/* another flow may have taken its place */
	if (back && back->dport == t->sport && back->sport == t->dport &&
	    addr_eq(&back->daddr, &t->saddr) &&
	    addr_eq(&back->saddr, &t->daddr))
		back->seen = now;
}

/* The live entry of the packet's tuple in this direction, refreshed. */
static __always_inline struct mst_ct *ct_lookup(struct work *w, __u8 dir)
{
	struct pkt *p = &w->p;
	struct mst_ct *ct;

	p->t.dir = dir;
	ct = bpf_map_lookup_elem(&mst_ct_v2, &p->t);
	if (!ct || older(ct->seen, ct_timeout(ct, p->t.proto)))
		return NULL;
	if (p->t.proto == IPPROTO_TCP) {
		if (is_syn(p)) {
			if (ct->state == MST_CT_CLOSING)
				return NULL; /* the client reuses its port */
		} else if (p->tcp_flags & (TCP_FIN | TCP_RST)) {
			p->ends = ct->state != MST_CT_CLOSING;
			ct->state = MST_CT_CLOSING;
		} else if (ct->state == MST_CT_NEW) {
			ct->state = MST_CT_ESTABLISHED;
		}
	}
	ct_heard(w, ct);
	return ct;
}

/* The key under which the reply to a packet t, of protocol proto, arrives. */
static __always_inline struct mst_tuple *
ct_reply_key(struct work *w, const struct mst_tuple *t, __u8 proto)
{
	struct mst_tuple *key = &w->key;

	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = t->daddr;
	key->daddr = t->saddr;
	key->sport = t->dport;
	key->dport = t->sport;
	key->proto = proto;
	key->dir = MST_DIR_REPLY;
	return key;
}

/*
 * The entry of the flow that a packet t which left us is part of. Turned round
 * it is the key of the flow's other direction.
 */
static __always_inline const struct mst_ct *
ct_of_sent(struct work *w, const struct mst_tuple *t)
{
	struct mst_tuple *key = ct_reply_key(w, t, t->proto);
	const struct mst_ct *ct;

	ct = bpf_map_lookup_elem(&mst_ct_v2, key);
	if (ct)
		return ct;
	key->dir = MST_DIR_REQUEST;
	return bpf_map_lookup_elem(&mst_ct_v2, key);
}

/*
 * Enters the flow w->p.t -> w->now (the tuple after translation) with its way
 * back. A reply tuple that another live flow has is a collision. Returns 0 or
 * a reason.
 */
__noinline int ct_create(__u32 service, __u32 backend)
{
	struct work *w = work();
	const struct mst_tuple *request, *sent;
	const struct mst_ct *had;
	struct mst_tuple *key;
	struct mst_ct *ct;
	__u64 now = clock();
	int err; /* before 6.4 the upper half of what maps return is none */

	if (!w)
		return MST_REASON_CT_FULL;
	ct_used(now);
	request = &w->p.t;
	w->came = *request;
	sent = &w->now;
	key = ct_reply_key(w, sent, request->proto);
	ct = &w->ct;
	__builtin_memset(ct, 0, sizeof(*ct));
	ct->saddr = request->daddr;
	ct->daddr = request->saddr;
	ct->sport = request->dport;
	ct->dport = request->sport;
	ct->backend = backend;
	ct->inside = w->place != PLACE_UPLINK;
	ct->service = service;
	ct->seen = now;
	err = bpf_map_update_elem(&mst_ct_v2, key, ct, BPF_NOEXIST);
	if (err == -EEXIST) {
		had = bpf_map_lookup_elem(&mst_ct_v2, key);
		if (had &&
		    (!addr_eq(&had->saddr, &ct->saddr) ||
		     had->sport != ct->sport || had->dport != ct->dport) &&
		    !ct_over(had, request->proto))
			return MST_REASON_CT_COLLISION;
		err = bpf_map_update_elem(&mst_ct_v2, key, ct, BPF_ANY);
	}
	if (err)
		return MST_REASON_CT_FULL;
	ct->saddr = sent->saddr;
	ct->daddr = sent->daddr;
	ct->sport = sent->sport;
	ct->dport = sent->dport;
	*key = *request;
	key->dir = MST_DIR_REQUEST;
	if (bpf_map_update_elem(&mst_ct_v2, key, ct, BPF_ANY))
		return MST_REASON_CT_FULL;
	return 0;
}

/*
 * A client sends to a backend's own address from a port that it used for a
 * VIP before: that flow must not translate the replies of this one. A stream
 * that still lives is a collision; datagrams go to whom they went last.
 * Returns 0 or a reason.
 */
static __always_inline __u32 ct_direct(struct work *w)
{
	struct mst_tuple *key = ct_reply_key(w, &w->p.t, w->p.t.proto);
	struct mst_tuple *request = &w->known;
	const struct mst_ct *had;

	had = bpf_map_lookup_elem(&mst_ct_v2, key);
	if (!had)
		return 0;
	if (key->proto == IPPROTO_TCP && !ct_over(had, key->proto))
		return MST_REASON_CT_COLLISION;
	__builtin_memset(request, 0, sizeof(*request));
	request->saddr = had->daddr;
	request->daddr = had->saddr;
	request->sport = had->dport;
	request->dport = had->sport;
	request->proto = key->proto;
	request->dir = MST_DIR_REQUEST;
	bpf_map_delete_elem(&mst_ct_v2, request);
	bpf_map_delete_elem(&mst_ct_v2, key);
	return 0;
}

/* Counts a packet of the flow of a backend; later fragments are not. */
static __always_inline void ct_traffic(const struct pkt *p, __u32 service,
				       __u32 backend, bool begins)
{
	__u32 len = p->end - p->l4 - p->l4_len;

	if (p->t.dir == MST_DIR_REPLY)
		traffic(service, backend, 0, 0, len);
	else
		traffic(service, backend, begins, len, 0);
}

/* The key of the fragments of w->p, in memory that is not the stack's. */
static __always_inline struct mst_frag_key *frag_key(struct work *w,
						     __u32 leaves)
{
	struct mst_frag_key *key = &w->frag_key;

	key->saddr = w->p.t.saddr;
	key->daddr = w->p.t.daddr;
	key->id = w->p.frag_id;
	key->proto = w->p.t.proto | leaves;
	return key;
}

static __always_inline void frag_enter(struct work *w,
				       const struct mst_tuple *now,
				       __u32 uplink, __u32 leaves)
{
	struct mst_frag *f = &w->frag;

	if (w->p.frag != FRAG_FIRST)
		return;
	f->saddr = now->saddr;
	f->daddr = now->daddr;
	f->uplink = uplink;
	bpf_map_update_elem(&mst_frags_v1, frag_key(w, leaves), f, BPF_ANY);
}

/* Later fragments of the packet w->p, as it arrived, go the way of now. */
static __always_inline void
frag_remember(struct work *w, const struct mst_tuple *now, __u32 uplink)
{
	frag_enter(w, now, uplink, 0);
}

static __always_inline const struct mst_frag *frag_lookup(struct work *w)
{
	return bpf_map_lookup_elem(&mst_frags_v1, frag_key(w, 0));
}

#endif /* MST_CT_H */
