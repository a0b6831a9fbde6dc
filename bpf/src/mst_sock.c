// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * mst_sock.c - services at connect time.
 *
 * Attached to the root of the cgroup2 tree. A socket of one of our sandboxes
 * that connects or sends to a VIP goes to a backend instead: no packet of it
 * is ever translated, so the VIP costs nothing over a direct connection.
 * Sockets of other sandboxes return after one lookup.
 */
#include "bind.h"
#include "event.h"
#include "lb.h"
#include "sock.h"
#include "sockops.h"

#define DNS_PORT      bpf_htons(53)
#define DNS_IP	      bpf_htonl(0x7f00000b) /* 127.0.0.11, the engine's resolver */
#define HEARTBEAT_MAX (2 * 1000000000ULL)

/*
 * Tells of a socket that goes to vip:vport: of a refusal, or of the flow of
 * datagrams that it begins. Streams are told of by sock_ops, which knows where
 * they come from.
 */
static __noinline int tell_socket(struct bpf_sock_addr *ctx,
				  const struct mst_addr *vip, __be16 vport,
				  const struct mst_sock_flow *f, __u32 reason)
{
	struct mst_event *e;

	e = event(f ? MST_EVENT_NEW : MST_EVENT_REFUSE,
		  f ? MST_PATH_SOCKET : 0);
	if (!e)
		return 0;
	e->reason = reason;
	e->dir = MST_SOCKET;
	e->cookie = bpf_get_netns_cookie(ctx);
	e->t.daddr = *vip;
	e->t.dport = vport;
	e->t.proto = ctx->protocol;
	if (f) {
		e->to = f->addr;
		e->port = f->port;
		e->service = f->service;
		e->backend = f->backend;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

static __always_inline int refuse(struct bpf_sock_addr *ctx,
				  const struct mst_addr *vip, __be16 vport,
				  int err, __u32 reason)
{
	count(reason, MST_SOCKET, 0, 0);
	if (watched())
		tell_socket(ctx, vip, vport, NULL, reason);
	bpf_set_retval(-err);
	return DENY;
}

/*
 * Our resolver answers in place of the engine's while it listens in the
 * sandbox and the daemon's heartbeat is fresh: killed, hung or absent, the
 * engine answers as if we had never been there.
 */
static __always_inline bool dns_alive(struct bpf_sock_addr *ctx,
				      const struct mst_sandbox *sb)
{
	struct bpf_sock_tuple tuple = {};
	const struct mst_config *cfg = config();
	struct bpf_sock *sk;

	if (!sb->dns_port || !cfg || older(cfg->heartbeat, HEARTBEAT_MAX))
		return false;
	tuple.ipv4.saddr = DNS_IP;
	tuple.ipv4.sport = DNS_PORT;
	tuple.ipv4.daddr = DNS_IP;
	tuple.ipv4.dport = sb->dns_port;
	if (ctx->protocol == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4),
				       BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, sizeof(tuple.ipv4),
				       BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

static __always_inline bool is_dns(const struct mst_addr *a)
{
	return a->w[3] == DNS_IP && addr_is4(a);
}

/* The flow of a socket to vip:vport, if its backend still exists. */
static __always_inline const struct mst_sock_flow *
known_flow(const struct mst_sock *st, const struct mst_addr *vip, __be16 vport)
{
	const struct mst_sock_flow *f;
	int i;

	for (i = 0; i < MST_SOCK_FLOWS; i++) {
		f = &st->flow[i];
		if (f->vport == vport && addr_eq(&f->vip, vip) &&
		    bpf_map_lookup_elem(&mst_backends_v1, &f->backend))
			return f;
	}
	return NULL;
}

static __always_inline const struct mst_sock_flow *
remember(struct mst_sock *st, const struct mst_addr *vip, __be16 vport,
	 const struct mst_addr *addr, __be16 port, __u32 service, __u32 backend)
{
	struct mst_sock_flow *f;
	__u32 at = st->next;

	at &= MST_SOCK_FLOWS - 1;
	f = &st->flow[at];
	f->vip = *vip;
	f->addr = *addr;
	f->vport = vport;
	f->port = port;
	f->backend = backend;
	f->service = service;
	st->next = at + 1;
	return f;
}

/* Is the socket bound to a loopback address, from which nothing goes further?
 */
static __always_inline bool stays_local(const struct bpf_sock_addr *ctx)
{
	struct mst_addr src;

	if (!ctx->sk)
		return false;
	if (ctx->sk->family == AF_INET) {
		src = addr4(ctx->sk->src_ip4);
	} else {
		src.w[0] = ctx->sk->src_ip6[0];
		src.w[1] = ctx->sk->src_ip6[1];
		src.w[2] = ctx->sk->src_ip6[2];
		src.w[3] = ctx->sk->src_ip6[3];
	}
	return addr_loopback(&src);
}

/* The service published where the socket goes: a port of the host's. */
static __always_inline const struct mst_service *
published(struct bpf_sock_addr *ctx, const struct mst_sandbox *sb,
	  struct mst_service_key *key, const struct mst_addr *dst, __be16 port)
{
	bool host = sb->flags & MST_SB_ALL_NETWORKS;
	const struct mst_service *svc;

	if (!(host && addr_loopback(dst)) && !lb_is_host(dst))
		return NULL;
	if (host && stays_local(ctx))
		return NULL;
	svc = lb_published(key, dst, port, ctx->protocol, true);
	/* which address a container sends from is known per packet */
	if (svc && svc->flags & MST_SVC_RESTRICTED && !host)
		return NULL;
	return svc;
}

/*
 * Is the backend in a network of the sandbox's that leads out? What it cannot
 * send to directly is translated at the host's end, packet by packet; and who
 * is shut in does not get to the host's ports, whatever is behind them.
 */
static __always_inline bool near(__u64 cookie, const struct mst_backend *be)
{
	const struct mst_endpoint *ep;
	const struct mst_interface *iface;
	__u32 ifindex;

	ep = bpf_map_lookup_elem(&mst_endpoints_v1, &be->addr);
	if (!ep || (ep->network && !sandbox(cookie, ep->network)))
		return false;
	ifindex = ep->ifindex;
	iface = bpf_map_lookup_elem(&mst_interfaces_v1, &ifindex);
	return !iface || !(iface->flags & MST_IF_STRICT) ||
	       iface->flags & MST_IF_EGRESS;
}

/* connect and sendmsg: from a VIP to a backend. */
static __always_inline int to_backend(struct bpf_sock_addr *ctx, bool v6,
				      bool datagram)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	const struct mst_sandbox *sb = sandbox(cookie, 0);
	const struct mst_service *head, *svc;
	const struct mst_sock_flow *flow;
	const struct mst_backend *be;
	struct mst_service_key key;
	struct mst_addr dst, vip, client;
	struct mst_sock *st;
	bool published_port = false;
	__be16 vport, port;
	__u32 id;

	if (!sb)
		return ALLOW;
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return ALLOW; /* raw and ping sockets: per packet */
	vport = (__be16)ctx->user_port;
	get_dst(ctx, v6, &vip);
	if (is_dns(&vip) && vport == DNS_PORT) {
		st = sock_state(ctx, false);
		if (st && st->flags & MST_SOCK_EXEMPT)
			return ALLOW;
		if (dns_alive(ctx, sb))
			set_dst(ctx, v6, &vip, sb->dns_port);
		return ALLOW;
	}
	if (!(sb->flags & MST_SB_SOCKET_LB))
		return ALLOW;
	head = lb_head(&key, &vip);
	if (!head) {
		if (lb_in_pool(&vip))
			return refuse(ctx, &vip, vport, EHOSTUNREACH,
				      MST_REASON_NO_SERVICE);
		head = published(ctx, sb, &key, &vip, vport);
		if (!head)
			return ALLOW;
		published_port = true;
	}
	if (head->network && !(sb->flags & MST_SB_ALL_NETWORKS) &&
	    !sandbox(cookie, head->network))
		return refuse(ctx, &vip, vport, EHOSTUNREACH,
			      MST_REASON_NOT_MEMBER);
	st = NULL;
	if (datagram) {
		/* an unconnected socket keeps its backend while that lives */
		st = sock_state(ctx, true);
		flow = st ? known_flow(st, &vip, vport) : NULL;
		if (flow) {
			dst = flow->addr;
			set_dst(ctx, v6, &dst, flow->port);
			return ALLOW;
		}
	}
	svc = head;
	if (!published_port)
		svc = lb_service(&key, head, vport, ctx->protocol);
	/* ping learns its source address so; what is sent is refused as such */
	if (!svc->count && svc == head && ctx->protocol == IPPROTO_UDP &&
	    !datagram && !published_port)
		return ALLOW;
	client = addr4(0);
	client.w[2] = cookie >> 32;
	client.w[3] = (__u32)cookie;
	be = lb_select_for(&key, svc, &client, vport, ctx->protocol, &id);
	if (published_port && !(sb->flags & MST_SB_ALL_NETWORKS) &&
	    (!be || !near(cookie, be)))
		return ALLOW;
	if (!be)
		return refuse(ctx, &vip, vport, ECONNREFUSED,
			      svc == head && !key.port && !svc->id
				      ? MST_REASON_NO_SERVICE
				      : MST_REASON_NO_BACKEND);
	dst = be->addr;
	port = be->port ? be->port : vport;
	if (!st)
		st = sock_state(ctx, true);
	if (st) {
		flow = remember(st, &vip, vport, &dst, port, svc->id, id);
		if (ctx->protocol == IPPROTO_UDP && watched())
			tell_socket(ctx, &vip, vport, flow, 0);
	}
	traffic(svc->id, id, 1, 0, 0);
	set_dst(ctx, v6, &dst, port);
	return ALLOW;
}

/* recvmsg and getpeername: the application sees whom it asked. */
static __always_inline int to_frontend(struct bpf_sock_addr *ctx, bool v6)
{
	const struct mst_sock_flow *f;
	const struct mst_sandbox *sb;
	struct mst_addr src, vip;
	struct mst_sock *st;
	__be16 port;
	int i;

	port = (__be16)ctx->user_port;
	get_dst(ctx, v6, &src);
	if (is_dns(&src)) {
		sb = sandbox(bpf_get_netns_cookie(ctx), 0);
		if (sb && sb->dns_port && port == sb->dns_port)
			set_dst(ctx, v6, &src, DNS_PORT);
		return ALLOW;
	}
	st = sock_state(ctx, false);
	if (!st)
		return ALLOW;
	/* the newest first: two VIPs may have one backend */
	for (i = 1; i <= MST_SOCK_FLOWS; i++) {
		f = &st->flow[(st->next - i) & (MST_SOCK_FLOWS - 1)];
		if (f->port == port && addr_eq(&f->addr, &src)) {
			vip = f->vip;
			set_dst(ctx, v6, &vip, f->vport);
			break;
		}
	}
	return ALLOW;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, false, false);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, true, false);
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, false, true);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, true, true);
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return to_frontend(ctx, false);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return to_frontend(ctx, true);
}

SEC("cgroup/getpeername4")
int sock_getpeername4(struct bpf_sock_addr *ctx)
{
	return to_frontend(ctx, false);
}

SEC("cgroup/getpeername6")
int sock_getpeername6(struct bpf_sock_addr *ctx)
{
	return to_frontend(ctx, true);
}

SEC("cgroup/bind4")
int sock_bind4(struct bpf_sock_addr *ctx)
{
	return to_own(ctx, false);
}

SEC("cgroup/bind6")
int sock_bind6(struct bpf_sock_addr *ctx)
{
	return to_own(ctx, true);
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		return connects(ops);
	if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		return established(ops);
	if (ops->op == BPF_SOCK_OPS_STATE_CB && ops->args[1] == BPF_TCP_CLOSE &&
	    ops->args[0] != BPF_TCP_LISTEN)
		return ended(ops);
	if (ops->op == BPF_SOCK_OPS_TCP_LISTEN_CB ||
	    (ops->op == BPF_SOCK_OPS_STATE_CB &&
	     ops->args[0] == BPF_TCP_LISTEN))
		return listens(ops, ops->op == BPF_SOCK_OPS_STATE_CB);
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
