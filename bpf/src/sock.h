/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sock.h - a socket, its sandbox, and the address that it asks for. */
#ifndef MST_SOCK_H
#define MST_SOCK_H

#include "addr.h"
#include "maps.h"

#define ALLOW 1
#define DENY  0

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct mst_sock);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} mst_socks_v2 SEC(".maps");

static __always_inline struct mst_sock *sock_state(struct bpf_sock_addr *ctx,
						   bool create)
{
	if (!ctx->sk)
		return NULL;
	return bpf_sk_storage_get(&mst_socks_v2, ctx->sk, NULL,
				  create ? BPF_SK_STORAGE_GET_F_CREATE : 0);
}

static __always_inline const struct mst_sandbox *sandbox(__u64 cookie,
							 __u32 network)
{
	struct mst_sandbox_key key = {.cookie = cookie, .network = network};

	return bpf_map_lookup_elem(&mst_sandboxes_v1, &key);
}

static __always_inline void get_dst(const struct bpf_sock_addr *ctx, bool v6,
				    struct mst_addr *dst)
{
	if (!v6) {
		*dst = addr4(ctx->user_ip4);
		return;
	}
	dst->w[0] = ctx->user_ip6[0];
	dst->w[1] = ctx->user_ip6[1];
	dst->w[2] = ctx->user_ip6[2];
	dst->w[3] = ctx->user_ip6[3];
}

static __always_inline void set_dst(struct bpf_sock_addr *ctx, bool v6,
				    const struct mst_addr *dst, __be16 port)
{
	if (!v6) {
		ctx->user_ip4 = dst->w[3];
	} else {
		ctx->user_ip6[0] = dst->w[0];
		ctx->user_ip6[1] = dst->w[1];
		ctx->user_ip6[2] = dst->w[2];
		ctx->user_ip6[3] = dst->w[3];
	}
	ctx->user_port = port;
}

#endif /* MST_SOCK_H */
