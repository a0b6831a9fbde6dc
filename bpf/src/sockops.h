/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sockops.h - TCP sockets as they connect, listen and close. */
#ifndef MST_SOCKOPS_H
#define MST_SOCKOPS_H

#include "event.h"
#include "sock.h"

static __always_inline bool loopback(const struct bpf_sock_ops *ops)
{
	if (ops->family == AF_INET)
		return (ops->local_ip4 & bpf_htonl(0xff000000)) ==
		       bpf_htonl(0x7f000000);
	return !ops->local_ip6[0] && !ops->local_ip6[1] && !ops->local_ip6[2] &&
	       ops->local_ip6[3] == bpf_htonl(1);
}

static __always_inline void remote(struct bpf_sock_ops *ops,
				   struct mst_addr *to)
{
	__be32 ip4 = ops->remote_ip4;

	/* else the compiler chooses an address to load from */
	asm volatile("" : "+r"(ip4));
	if (ops->family == AF_INET) {
		*to = addr4(ip4);
	} else {
		to->w[0] = ops->remote_ip6[0];
		to->w[1] = ops->remote_ip6[1];
		to->w[2] = ops->remote_ip6[2];
		to->w[3] = ops->remote_ip6[3];
	}
}

static __always_inline void local(struct bpf_sock_ops *ops,
				  struct mst_addr *from)
{
	__be32 ip4 = ops->local_ip4;

	asm volatile("" : "+r"(ip4));
	if (ops->family == AF_INET) {
		*from = addr4(ip4);
	} else {
		from->w[0] = ops->local_ip6[0];
		from->w[1] = ops->local_ip6[1];
		from->w[2] = ops->local_ip6[2];
		from->w[3] = ops->local_ip6[3];
	}
}

static __always_inline __be16 remote_port(const struct bpf_sock_ops *ops)
{
	return bpf_htons((__u16)bpf_ntohl(ops->remote_port));
}

/* The flow that the newest of a TCP socket's translations is, if it is. */
static __always_inline const struct mst_sock_flow *
translated(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	const struct mst_sock_flow *f;
	const struct mst_sock *st;
	struct mst_addr to;

	if (!sk)
		return NULL;
	st = bpf_sk_storage_get(&mst_socks_v2, sk, NULL, 0);
	if (!st || !st->next)
		return NULL;
	f = &st->flow[(st->next - 1) & (MST_SOCK_FLOWS - 1)];
	remote(ops, &to);
	/* it may have connected elsewhere since */
	if (f->port != remote_port(ops) || !addr_eq(&f->addr, &to))
		return NULL;
	return f;
}

/*
 * Does a stream of a sandbox go to an endpoint's own address? No program
 * translates it, and only who watches makes us look. It is remembered, because
 * streams that were accepted end here, too.
 */
static __always_inline bool direct(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	const struct mst_endpoint *ep;
	struct mst_sock *st;
	struct mst_addr to;

	if (!sk || !sandbox(bpf_get_netns_cookie(ops), 0))
		return false;
	remote(ops, &to);
	ep = bpf_map_lookup_elem(&mst_endpoints_v1, &to);
	if (!ep || ep->flags & MST_EP_HOST)
		return false;
	st = bpf_sk_storage_get(&mst_socks_v2, sk, NULL,
				BPF_SK_STORAGE_GET_F_CREATE);
	if (st)
		st->flags |= MST_SOCK_TOLD;
	return st;
}

static __always_inline bool told(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	const struct mst_sock *st;

	if (!sk)
		return false;
	st = bpf_sk_storage_get(&mst_socks_v2, sk, NULL, 0);
	return st && st->flags & MST_SOCK_TOLD;
}

/* Tells of a stream, f if it is translated. */
static __noinline int tell_stream(struct bpf_sock_ops *ops, __u32 kind,
				  const struct mst_sock_flow *f)
{
	struct mst_event *e;

	e = event(kind, f ? MST_PATH_SOCKET : MST_PATH_DIRECT);
	if (!e)
		return 0;
	e->cookie = bpf_get_netns_cookie(ops);
	local(ops, &e->t.saddr);
	e->t.sport = bpf_htons((__u16)ops->local_port);
	e->t.proto = IPPROTO_TCP;
	remote(ops, &e->to);
	e->port = remote_port(ops);
	if (f) {
		e->t.daddr = f->vip;
		e->t.dport = f->vport;
		e->service = f->service;
		e->backend = f->backend;
	} else {
		e->t.daddr = e->to;
		e->t.dport = e->port;
	}
	if (kind == MST_EVENT_END) {
		e->sent = ops->bytes_acked;
		e->received = ops->bytes_received;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

static __always_inline void tell_of_end(struct bpf_sock_ops *ops)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags |
					       BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline int connects(struct bpf_sock_ops *ops)
{
	const struct mst_sock_flow *f;

	if (!watched())
		return 1;
	f = translated(ops);
	if (f || direct(ops)) {
		tell_stream(ops, MST_EVENT_NEW, f);
		tell_of_end(ops);
	}
	return 1;
}

/*
 * A translated stream is counted once, when it closes: only its socket is
 * told of by the kernel, and no other pays. It is so from here on, not from
 * connect, because each change of its state costs a call.
 */
static __always_inline int established(struct bpf_sock_ops *ops)
{
	if (translated(ops))
		tell_of_end(ops);
	return 1;
}

static __always_inline int ended(struct bpf_sock_ops *ops)
{
	const struct mst_sock_flow *f = translated(ops);

	if (f)
		traffic(f->service, f->backend, 0, ops->bytes_acked,
			ops->bytes_received);
	if (watched() && (f || told(ops)))
		tell_stream(ops, MST_EVENT_END, f);
	return 1;
}

/*
 * Keeps mst_listeners: +1 at listen, -1 when the listening socket closes. An
 * entry stays at 0, so that no count is lost between two sockets, and goes
 * with its sandbox. If there is no room the sandbox is tracked no longer, and
 * its backends are taken at their word.
 */
static __always_inline int listens(struct bpf_sock_ops *ops, bool closes)
{
	struct mst_sandbox_key skey = {};
	struct mst_listener_key key = {};
	struct mst_sandbox *sb;
	__u32 *n, none = 0;

	skey.cookie = key.cookie = bpf_get_netns_cookie(ops);
	sb = bpf_map_lookup_elem(&mst_sandboxes_v1, &skey);
	/* the host is nobody's backend by its cookie */
	if (loopback(ops) || !sb || sb->flags & MST_SB_ALL_NETWORKS)
		return 1;
	key.port = bpf_htons((__u16)ops->local_port);
	n = bpf_map_lookup_elem(&mst_listeners_v1, &key);
	if (closes) {
		if (n)
			__sync_fetch_and_add(n, -1);
		return 1;
	}
	tell_of_end(ops);
	if (!n) {
		bpf_map_update_elem(&mst_listeners_v1, &key, &none,
				    BPF_NOEXIST);
		n = bpf_map_lookup_elem(&mst_listeners_v1, &key);
	}
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		sb->flags &= ~MST_SB_TRACKED;
	return 1;
}

#endif /* MST_SOCKOPS_H */
