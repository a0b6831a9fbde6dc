/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bind.h - sockets that bind to a VIP, or to a port that is published. */
#ifndef MST_BIND_H
#define MST_BIND_H

#include "lb.h"
#include "sock.h"

#define BIND_SLOTS 256 /* slots looked at for the sandbox's own backend */

struct own_search {
	struct mst_service_key key;
	__u64 cookie;
	struct mst_addr addr;
	__u32 found;
};

static long own_backend(__u32 i, struct own_search *s)
{
	const struct mst_backend *be;
	const struct mst_service *slot;

	s->key.slot = i + 1;
	slot = bpf_map_lookup_elem(&mst_services_v1, &s->key);
	if (!slot)
		return 1;
	be = bpf_map_lookup_elem(&mst_backends_v1, &slot->backend);
	if (!be || be->cookie != s->cookie)
		return 0;
	s->addr = be->addr;
	s->found = 1;
	return 1;
}

/* Is the port that a socket of the host's would have published? */
static __always_inline bool taken(struct bpf_sock_addr *ctx,
				  const struct mst_addr *addr)
{
	__be16 port = (__be16)ctx->user_port;
	const struct mst_sock *st;

	if (!port || !lb_taken(addr, port, ctx->protocol))
		return false;
	st = sock_state(ctx, false);
	return !st || !(st->flags & MST_SOCK_EXEMPT);
}

/*
 * bind: a sandbox that backs a VIP may bind to it, which means its own
 * address there (stacks whose members bind to the name of their service).
 */
static __always_inline int to_own(struct bpf_sock_addr *ctx, bool v6)
{
	const struct mst_sandbox *sb;
	struct own_search s = {};
	const struct mst_service *head;
	struct mst_addr addr;

	s.cookie = bpf_get_netns_cookie(ctx);
	sb = sandbox(s.cookie, 0);
	if (!sb)
		return ALLOW;
	get_dst(ctx, v6, &addr);
	if (sb->flags & MST_SB_ALL_NETWORKS && taken(ctx, &addr)) {
		bpf_set_retval(-EADDRINUSE);
		return DENY;
	}
	if (addr_zero(&addr))
		return ALLOW;
	head = lb_head(&s.key, &addr);
	if (!head)
		return ALLOW;
	lb_service(&s.key, head, (__be16)ctx->user_port, ctx->protocol);
	bpf_loop(BIND_SLOTS, own_backend, &s, 0);
	if (s.found)
		set_dst(ctx, v6, &s.addr, (__be16)ctx->user_port);
	return ALLOW;
}

#endif /* MST_BIND_H */
