// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"maps"
	"net/netip"
	"time"
)

// NetworkConfig is what a network is made from. Options are the keys of `docker network create --opt`.
type NetworkConfig struct {
	ID       string // unique, chosen by the caller (Docker's network id)
	Source   string // whose it is: SourceDocker, which "" stands for, or SourceCNI
	Name     string // may be empty while the caller does not know it
	Options  map[string]string
	IPv4     []Subnet
	IPv6     []Subnet
	Internal bool
}

// Subnet is one pool of a network, with its gateway (an address and the pool's length) and the
// auxiliary addresses kept free of endpoints.
type Subnet struct {
	Pool    netip.Prefix
	Gateway netip.Prefix
	Aux     map[string]netip.Addr
}

// EndpointConfig is what an endpoint is made from. Invalid prefixes and a nil MAC mean none given.
type EndpointConfig struct {
	ID        string
	NetworkID string
	Source    string // as of a network
	IPv4      netip.Prefix
	IPv6      netip.Prefix
	MAC       string            // "02:42:…", "" lets the driver choose
	Options   map[string]string // endpoint driver-opts
	// Into is the path of the sandbox, where it exists already and no engine moves devices there. A pair's device is
	// made in it under the name that Options ask for ([Endpoint.Inside]); others are the caller's to move.
	Into string
	// Shaped says that the host's end gets a queue that limits what the container receives.
	Shaped bool
}

// Endpoint is one container's attachment to a network.
type Endpoint struct {
	ID          string            `json:"id"`
	NetworkID   string            `json:"network"`
	Source      string            `json:"source"` // one of the Source constants
	IPv4        netip.Prefix      `json:"ipv4,omitzero"`
	IPv6        netip.Prefix      `json:"ipv6,omitzero"`
	MAC         string            `json:"mac"`      // of the container's interface
	HostMAC     string            `json:"host_mac"` // of the host's end
	HostIf      string            `json:"host_if"`  // name of the host's end
	PeerIf      string            `json:"peer_if"`  // name of the container's end until the engine renames it
	Index       int               `json:"index"`    // ifindex of the host's end
	Sandbox     string            `json:"sandbox,omitempty"`
	Cookie      uint64            `json:"cookie,omitempty"`  // netns cookie of the sandbox, once known
	IfName      string            `json:"if_name,omitempty"` // wanted name inside (com.docker.network.endpoint.ifname)
	Options     map[string]string `json:"options,omitempty"`
	Published   []Published       `json:"published,omitempty"` // ports of the host's that lead to it
	PublishedAt time.Time         `json:"published_at,omitzero"`
	Asked       uint64            `json:"asked,omitempty"` // digest of what Published was made from
	Shaped      bool              `json:"shaped,omitempty"`
	// Partial says that it is half made or half removed, and nobody's: nobody asks for its removal any more.
	Partial bool `json:"partial,omitempty"`
	leaving bool // this process has begun to remove it
	// Inside says that its device is in the sandbox already.
	Inside bool `json:"-"`

	into string // of its config, while it is made
}

// same tells whether e was made from cfg.
func (e *Endpoint) same(cfg EndpointConfig) bool {
	return e.NetworkID == cfg.NetworkID && e.IPv4 == cfg.IPv4 && e.IPv6 == cfg.IPv6 &&
		(cfg.MAC == "" || bytes.Equal(parseMAC(cfg.MAC), parseMAC(e.MAC))) && maps.Equal(e.Options, cfg.Options)
}

// Hop is a destination and the router that leads to it.
type Hop struct {
	To  netip.Prefix
	Via netip.Addr
}

// Join is what the engine needs to move an endpoint into a sandbox.
type Join struct {
	SrcName   string
	DstPrefix string
	DstName   string // only when the user asked for a name
	Gateway   netip.Addr
	Gateway6  netip.Addr
	// Routes are on-link (CONNECTED) destinations besides the endpoint's own subnet.
	Routes []netip.Prefix
	// Hops are destinations behind a router, to be added in this order.
	Hops                  []Hop
	DisableGatewayService bool
}

// The classes of refusals, told apart by marker method as those of services are.
type (
	invalid  struct{ error } // what is asked for makes no sense
	conflict struct{ error } // clashes with what there is
)

func (invalid) InvalidParameter() {}
func (conflict) Conflict()        {}

func (e invalid) Unwrap() error  { return e.error }
func (e conflict) Unwrap() error { return e.error }
