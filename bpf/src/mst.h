/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * mst.h - what the programs and their users agree on.
 *
 * The only place where a struct or a constant of the maps is defined: the Go
 * mirrors in ../mirror.go are generated from the BTF of the objects.
 */
#ifndef MST_H
#define MST_H

#include <linux/types.h>

/*
 * An address of either family in network byte order. IPv4 is mapped into IPv6
 * as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), so that one code path serves both.
 */
struct mst_addr {
	__be32 w[4];
};

/*
 * mst_services: {addr, port, proto, 0} is a frontend, {…, n} its n-th slot.
 * Port 0 and proto 0 stand for any. An address is a VIP if its head
 * {addr, 0, 0, 0} exists; a head without slots refuses what no other frontend
 * of the address serves.
 */
struct mst_service_key {
	struct mst_addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
	__u32 slot;
};

struct mst_service {
	__u32 id;	/* of the service, the same in all of its frontends */
	__u32 network;	/* whose members may reach it; 0: everybody */
	__u32 count;	/* frontend: number of slots */
	__u32 backend;	/* slot: key of mst_backends */
	__u32 affinity; /* seconds a client keeps its backend; 0: none */
	__u32 reserve;	/* frontend: slots after these, if none of them listens
			 */
	__u32 flags;	/* frontend: enum mst_service_flag */
};

enum mst_service_flag {
	/* a port of the host's: of one address, or with a zero one of all */
	MST_SVC_PUBLISHED = 1,
	/* for sources in mst_sources only */
	MST_SVC_RESTRICTED = 2,
};

/*
 * mst_sources: who may begin flows to a restricted service, by the longest
 * prefix. What has begun goes on. A prefix of IPv6 that holds the mapped
 * addresses does not mean IPv4: an entry for these says so.
 */
#define MST_SOURCE_BITS 32 /* of prefixlen, for the service */

struct mst_source_key {
	__u32 prefixlen; /* MST_SOURCE_BITS and those of the address */
	__u32 service;
	struct mst_addr addr;
};

/* mst_backends: __u32 id -> where flows end. */
struct mst_backend {
	struct mst_addr addr;
	__be16 port; /* 0 keeps the frontend's */
	__u16 pad[3];
	__u64 cookie; /* netns cookie of the backend's sandbox; 0: unknown */
};

/*
 * mst_traffic: what a backend has got of a service. Payload that crosses the
 * programs again is counted again. An entry outlives its backend until the
 * daemon collects it.
 */
struct mst_traffic_key {
	__u32 service;
	__u32 backend;
};

struct mst_traffic {
	__u64 connections; /* flows begun */
	__u64 to_backend;  /* bytes of payload */
	__u64 from_backend;
};

/* mst_affinity: which backend a client had. */
struct mst_affinity_key {
	struct mst_addr client; /* address, or the netns cookie in w[2], w[3] */
	__u32 service;
};

struct mst_affinity {
	__u64 seen; /* ns, CLOCK_MONOTONIC */
	__u32 backend;
	__u32 pad;
};

/* mst_endpoints: address -> endpoint, the article's "ep" table. */
struct mst_endpoint {
	__u32 ifindex; /* of the host's end */
	__u32 network;
	__u32 flags;
	__u8 mac[6];	  /* of the container's interface */
	__u8 host_mac[6]; /* of the host's end, or of the slave via */
	__u32 via;	  /* ifindex: slave beside it, or end with a queue */
	__u32 parent;	  /* ifindex of the parent that leads out; 0: none */
};

enum mst_endpoint_flag {
	MST_EP_REDIRECT = 1, /* may be delivered straight into the peer */
	MST_EP_HOST = 2,     /* an address of the host itself */
	/* From outside, at its own address (with nothing translated): */
	MST_EP_OPEN =
		4, /* all of it is reached, gateway_mode nat-unprotected */
	MST_EP_PING = 8, /* it answers ping, gateway_mode routed */
};

/* mst_interfaces: ifindex of an endpoint's host end -> what it may do. */
struct mst_interface {
	__u32 network;
	__u32 flags;
	struct mst_addr gateway4; /* zero: none */
	struct mst_addr gateway6;
	__u8 mac[6]; /* of the host's end, which answers for the gateway */
	__u8 pad[2];
	__u32 via; /* host's slave of a parent, or parent: ifindex of the slave
		    */
};

enum mst_interface_flag {
	MST_IF_STRICT =
		1, /* sources must be its endpoints, destinations its network */
	MST_IF_EGRESS = 2, /* what is for nobody here may leave the host */
	MST_IF_MASQUERADE4 =
		4, /* with an address of the uplink as its source */
	MST_IF_MASQUERADE6 = 8,
	MST_IF_PRIVATE = 16, /* of a parent where nobody is but endpoints */
	/* endpoints and the host do not reach each other */
	MST_IF_ISOLATED4 = 32,
	MST_IF_ISOLATED6 = 64,
};

/* mst_uplinks: ifindex of a device that leads out -> what leaves by it. */
struct mst_uplink {
	struct mst_addr snat4; /* source of masqueraded flows; zero: none */
	struct mst_addr snat6;
};

/* mst_quotas: ifindex of an endpoint -> its masqueraded flows. */
#define MST_SNAT_QUOTA 16384

/*
 * mst_sandboxes: {netns cookie, 0} switches the socket hooks on in a sandbox,
 * {netns cookie, n} makes it a member of network n.
 */
struct mst_sandbox_key {
	__u64 cookie;
	__u32 network;
	__u32 pad;
};

struct mst_sandbox {
	__u32 flags;
	__be16 dns_port; /* of our resolver on 127.0.0.11 in it; 0: none */
	__u16 pad;
};

enum mst_sandbox_flag {
	MST_SB_SOCKET_LB = 1,	 /* load-balance at connect time */
	MST_SB_ALL_NETWORKS = 2, /* the host: member of every network */
	MST_SB_TRACKED = 4,	 /* mst_listeners knows all of its listeners */
};

/* mst_listeners: how many TCP sockets listen, by sandbox and port; may be 0. */
struct mst_listener_key {
	__u64 cookie;
	__be16 port;
	__u16 pad[3];
};

/* mst_ct: per-packet flows, by the tuple as it arrives. */
struct mst_tuple {
	struct mst_addr saddr;
	struct mst_addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 dir; /* enum mst_dir */
	__u16 pad;
};

enum mst_dir {
	MST_DIR_REQUEST = 0,
	MST_DIR_REPLY = 1,
};

/* The tuple that leaves, and how the flow stands. */
struct mst_ct {
	struct mst_addr saddr;
	struct mst_addr daddr;
	__be16 sport;
	__be16 dport;
	__u32 backend; /* key of mst_backends when the flow began; mst_snat:
			* ifindex of the endpoint */
	__u64 seen;    /* ns, CLOCK_MONOTONIC */
	__u8 state;    /* enum mst_ct_state */
	__u8 inside;   /* 1: mst_ct, an endpoint began it; mst_snat, with the
			* host */
	__u8 pad[2];
	__u32 uplink;  /* by which a slave's client comes; 0: no slave's flow */
	__u32 service; /* whose flow it is; 0: of none, and in mst_snat */
	__u32 pad2;
};

enum mst_ct_state {
	MST_CT_NEW = 0,
	MST_CT_ESTABLISHED = 1,
	MST_CT_CLOSING = 2,
};

/*
 * mst_snat: masqueraded flows. The keys and values are those of mst_ct: the
 * tuple as it comes from the container or from outside, and as it goes on. A
 * plain map, so that a flood from one container ends nobody else's flows;
 * both entries of a flow are collected together, by the daemon, or give their
 * port to another of the same container's.
 */

/* mst_frags: non-first fragments follow their head. */
struct mst_frag_key {
	struct mst_addr saddr;
	struct mst_addr daddr;
	__be32 id;
	__u32 proto; /* and MST_FRAG_LEAVES */
};

/* Of what leaves the host: a slave's own program must not follow that. */
#define MST_FRAG_LEAVES 0x100

struct mst_frag {
	struct mst_addr saddr;
	struct mst_addr daddr;
	__u32 uplink; /* as in mst_ct */
};

/* mst_socks: what a socket was translated to, for the way back. */
#define MST_SOCK_FLOWS 4

struct mst_sock_flow {
	struct mst_addr vip;
	struct mst_addr addr;
	__be16 vport;
	__be16 port;
	__u32 backend;
	__u32 service;
};

struct mst_sock {
	__u32 flags;
	__u32 next; /* flow to replace next */
	struct mst_sock_flow flow[MST_SOCK_FLOWS];
};

enum mst_sock_flag {
	MST_SOCK_EXEMPT = 1, /* the daemon's own: never translated */
	MST_SOCK_TOLD = 2,   /* who watches was told of its direct stream */
};

/* mst_config: one entry. */
struct mst_config {
	__u64 heartbeat;       /* ns, CLOCK_MONOTONIC: the daemon is alive */
	struct mst_addr pool4; /* service pools; zero mask: none */
	struct mst_addr mask4;
	struct mst_addr pool6;
	struct mst_addr mask6;
	__u64 events; /* ns, CLOCK_MONOTONIC: until then somebody reads
		       * mst_events
		       */
};

/*
 * mst_events: what `mustang monitor` shows, while its reader renews
 * mst_config.events. A reader that is gone switches it off by that.
 */
struct mst_event {
	__u64 time; /* ns, CLOCK_MONOTONIC, as of the last tick */
	/* as who began it knows it; the zero address: not known here */
	struct mst_tuple t;
	/* a flow: its backend; one that leaves: the source it leaves with */
	struct mst_addr to;
	__be16 port;
	__u8 kind;     /* enum mst_event_kind */
	__u8 path;     /* of a flow: enum mst_path */
	__u32 reason;  /* of a drop: enum mst_reason */
	__u32 dir;     /* of a drop: enum mst_metric_dir */
	__u32 ifindex; /* where it was seen; 0: at a socket */
	__u32 service;
	__u32 backend;
	__u64 cookie; /* netns cookie of the socket's sandbox; 0: a packet */
	__u64 sent;   /* bytes, by who began the flow, at its end */
	__u64 received;
};

enum mst_event_kind {
	MST_EVENT_DROP = 1,
	MST_EVENT_NEW = 2,
	MST_EVENT_END = 3,
	MST_EVENT_REFUSE = 4, /* a drop that its sender is told of */
};

enum mst_path {
	MST_PATH_SOCKET = 1, /* translated when its socket connected */
	MST_PATH_DIRECT = 2, /* a socket's, to an endpoint's own address */
	MST_PATH_PACKET = 3, /* translated packet by packet */
	MST_PATH_EGRESS = 4, /* out of the host */
};

/* mst_event_rate: for each CPU what mst_events has got, and what not. */
struct mst_event_rate {
	__u64 window; /* the time in units of 2^27 ns (0.13 s) */
	__u64 sent;   /* events in the window */
	__u64 lost;   /* ever: beyond EVENTS_MAX, or the ring was full */
};

#define EVENTS_MAX 1024 /* a window and CPU: some 7,600 a second */

/* mst_metrics: what was not forwarded, why, and where. */
struct mst_metric_key {
	__u32 reason;  /* enum mst_reason */
	__u32 dir;     /* enum mst_metric_dir */
	__u32 ifindex; /* 0: more interfaces than the map holds, or a socket */
};

struct mst_metric {
	__u64 packets;
	__u64 bytes;
};

enum mst_metric_dir {
	MST_FROM_CONTAINER = 0,
	MST_TO_CONTAINER = 1,
	MST_SOCKET = 2,
};

/* Why a packet was dropped or a connection refused. Append only. */
enum mst_reason {
	MST_REASON_NONE = 0,
	MST_REASON_MALFORMED =
		1,		/* headers that are cut, or lie about lengths */
	MST_REASON_VLAN = 2,	/* tagged frame from a container */
	MST_REASON_SPOOFED = 3, /* source is no address of the endpoint */
	MST_REASON_ISOLATED =
		4, /* destination is not in the sender's network */
	MST_REASON_NO_ROUTE =
		5, /* destination is neither endpoint, VIP nor gateway */
	MST_REASON_NO_FRAGMENT_HEAD =
		6, /* fragment of a flow whose head was not seen */
	MST_REASON_NO_SERVICE = 7,    /* port of a VIP that no service has */
	MST_REASON_NO_BACKEND = 8,    /* service without a running backend */
	MST_REASON_NOT_MEMBER = 9,    /* VIP of another network */
	MST_REASON_NO_FLOW = 10,      /* mid-flow TCP without conntrack */
	MST_REASON_CT_FULL = 11,      /* conntrack could not be written */
	MST_REASON_CT_COLLISION = 12, /* two flows with one reply tuple */
	MST_REASON_NAT_FAILED = 13,   /* the kernel refused a rewrite */
	MST_REASON_MULTICAST =
		14, /* multicast and broadcast end at the endpoint */
	MST_REASON_SNAT_FULL = 15,  /* no entry left for a masqueraded flow */
	MST_REASON_SNAT_PORTS = 16, /* no source port left towards a server */
	MST_REASON_SNAT_QUOTA = 17, /* the endpoint has too many flows */
	MST_REASON_TTL = 18,	    /* time to live exceeded */
	MST_REASON_TOO_BIG = 19,    /* larger than the MTU of the way out */
	MST_REASON_OFF_HOST = 20,   /* for a VIP or loopback, from outside */
	MST_REASON_SOURCE = 21, /* published port does not allow this source */
};

#endif /* MST_H */
