// SPDX-License-Identifier: Apache-2.0

// Package service turns names, frontends and the containers behind them into load-balanced virtual IPs.
package service

import (
	"net/netip"
	"time"

	"github.com/mustang-net/mustang/bpf"
)

// Source says who a service comes from.
type Source string

// The sources of services.
const (
	SourceHand    Source = "svc"     // `mustang svc add` or apply: persistent
	SourceDocker  Source = "docker"  // aliases and labels of containers
	SourceNerdctl Source = "nerdctl" // Compose labels of nerdctl containers
)

// Maps is where services become reachable: the pinned eBPF maps, or a fake in tests.
// PutService writes the slots first and the count that makes them visible last; a Put replaces.
// Deleting what is missing is no error.
type Maps interface {
	Services() ([]bpf.Service, error)
	Backends() ([]bpf.Backend, error)
	PutService(bpf.Service) error
	DeleteService(bpf.Frontend) error
	PutBackend(bpf.Backend) error
	DeleteBackend(id uint32) error
}

// Bulk is a [Maps] that writes or removes many services at once, in their order and knowing what it has of them.
// An error does not tell which of them failed: each is then tried by itself.
type Bulk interface {
	PutServices([]bpf.Service, []bpf.Held) error
	DeleteServices([]bpf.Frontend, []bpf.Held) error
}

// Batch is a [Maps] that keeps some changes until Flush; what failed is tried again by the next one.
type Batch interface{ Flush() error }

// Network is a network whose names become services.
type Network struct {
	ID       string `json:"id"`     // Docker's network id, or the name of a CNI network
	Number   uint32 `json:"number"` // of the network in the maps, never 0
	Name     string `json:"name"`   // "" while unknown
	IPv4     bool   `json:"ipv4"`
	IPv6     bool   `json:"ipv6"`
	VIP      bool   `json:"vip"`                // false: names keep the engine's answers
	Internal bool   `json:"internal,omitempty"` // asked after networks that lead out, as the engine does
}

// Endpoint is what a driver knows of a container's attachment.
type Endpoint struct {
	ID      string
	Network string // Network.ID
	IPv4    netip.Addr
	IPv6    netip.Addr
	Cookie  uint64            // netns cookie; 0 until the sandbox exists
	Options map[string]string // endpoint driver-opts: mustang.service, mustang.vip, mustang.health, mustang.weight
	Ports   []Port            // of the host's that lead to it
	Sources []netip.Prefix    // that may begin flows to Ports; nil for everybody
	// PortsSince is when these were published. Of endpoints that turn out to be no replicas of one another the
	// first keeps a port that they share.
	PortsSince time.Time
}

// Phase is where a container is in its life.
type Phase string

// Phases, in the order in which they get new flows; stopped containers get none. An unknown backend
// keeps the flows it was given until a source tells of it or [Manager.Sync] ends the wait.
const (
	PhaseReady     Phase = "ready"     // running and healthy, or without a health check
	PhaseStarting  Phase = "starting"  // running, health not known yet
	PhaseDraining  Phase = "draining"  // told to stop, still alive
	PhaseUnhealthy Phase = "unhealthy" // running, health check fails
	PhasePaused    Phase = "paused"    // gets nothing until unpaused
	PhaseStopped   Phase = "stopped"
	PhaseUnknown   Phase = "unknown" // found in the maps, and no source has told of it since the start
)

// Container is what an engine tells of a container, with the names each of its endpoints answers to.
type Container struct {
	ID     string
	Name   string // its own name, which keeps its own address
	Phase  Phase
	Labels map[string]string // mustang.service, mustang.vip, mustang.health, mustang.weight
	// Aliases are the service names by endpoint id, cleaned of the container's own name, id and hostname.
	// Every endpoint of the container has a key, even without any alias: that is how an endpoint and
	// its container find each other.
	Aliases map[string][]string
	// Priorities are the engine's gateway priorities by endpoint id: networks of a higher one are
	// asked first for a name. 0 where none was given.
	Priorities map[string]int
	// Started is when the container last started, on the host's clock. Facts of a start that came
	// after [Manager.Gone] bring its endpoints back; zero means unknown, which never does.
	Started time.Time
	Source  Source
}

// Spec is a hand-made service: what `svc add` and `svc apply` take and `svc ls -o json` prints.
type Spec struct {
	Name     string       `json:"name,omitempty"`
	Frontend bpf.Frontend `json:"frontend"`
	Backends []Target     `json:"backends"`
	Affinity uint32       `json:"affinity,omitempty"` // seconds a client keeps its backend; 0 for none
}

// Target is one backend of a hand-made service.
type Target struct {
	Addr   netip.AddrPort `json:"addr"`             // port 0 keeps the frontend's
	Weight uint32         `json:"weight,omitempty"` // 1 to 100, 0 means 1
	Drain  bool           `json:"drain,omitempty"`  // no new flows while another backend takes them
}

// View is a service as it stands, for listings.
type View struct {
	ID        uint32         `json:"id"`
	Source    Source         `json:"source"`
	Name      string         `json:"name,omitempty"`
	Network   string         `json:"network,omitempty"` // name, or id while the name is unknown; "" is the host scope
	Frontends []bpf.Frontend `json:"frontends"`
	Backends  []BackendView  `json:"backends"`
	Affinity  uint32         `json:"affinity,omitempty"` // seconds
}

// BackendView is a backend as it stands.
type BackendView struct {
	ID        uint32         `json:"id"`
	Addr      netip.AddrPort `json:"addr"`
	Weight    uint32         `json:"weight"`              // 1 to 100
	State     Phase          `json:"state"`               // why it does or does not get new flows
	Active    bool           `json:"active"`              // gets new flows now
	Container string         `json:"container,omitempty"` // its name
}

// Answer is what a name means inside a sandbox.
type Answer struct {
	// Known says that the name is a service's: the addresses are the whole answer, and a family
	// without any is NODATA. Names that are not known are the engine's.
	Known  bool
	Addrs4 []netip.Addr
	Addrs6 []netip.Addr
}
