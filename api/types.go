// SPDX-License-Identifier: Apache-2.0

// Package api is the contract between the daemon and the command line, with its server and client.
package api

import (
	"context"
	"net/netip"

	"github.com/mustang-net/mustang/drift"
	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/driver/cni"
	"github.com/mustang-net/mustang/monitor"
	"github.com/mustang-net/mustang/service"
)

// Host is everything the command line can ask of mustang. The daemon answers it on a socket
// ([Serve], [Dial]); without a daemon the command line opens the state and the maps itself.
type Host interface {
	Services(ctx context.Context) ([]service.View, error)
	AddService(ctx context.Context, spec service.Spec) (service.View, error)
	// RemoveService removes a hand-made service by frontend ("10.96.0.100:5201", "tcp:10.96.0.100:5201"), id or name.
	RemoveService(ctx context.Context, ref string) error
	// ApplyServices makes the hand-made services equal to specs.
	ApplyServices(ctx context.Context, specs []service.Spec) (Applied, error)
	// Drain takes a backend (ADDR[:PORT] or a container's name or id) out of new flows; undo brings it back.
	Drain(ctx context.Context, ref string, undo bool) error

	Endpoints(ctx context.Context) ([]Endpoint, error)
	// AddEndpoint makes the interface ifname of the sandbox netns (a path) known to the datapath.
	AddEndpoint(ctx context.Context, ifname, netns string) (Endpoint, error)
	// RemoveEndpoint forgets an endpoint made by AddEndpoint, by address.
	RemoveEndpoint(ctx context.Context, ref string) error

	Networks(ctx context.Context) ([]Network, error)
	// CNI is what runtimes ask of mustang as their plugin.
	CNI() cni.Host
	Ports(ctx context.Context) ([]Port, error)
	Status(ctx context.Context) (Status, error)
	// Verify tells of every difference between what is wanted and what the kernel has, and mends them if it is asked to.
	Verify(ctx context.Context, repair bool) (Verification, error)
	// Monitor tells of what the datapath does until ctx ends, which is no error, or tell fails.
	Monitor(ctx context.Context, filter monitor.Filter, tell func(monitor.Event) error) error
}

// Applied counts what ApplyServices did.
type Applied struct {
	Added     int `json:"added"`
	Changed   int `json:"changed"`
	Removed   int `json:"removed"`
	Unchanged int `json:"unchanged"`
}

// Endpoint is a driver's endpoint with the names a person knows it by.
type Endpoint struct {
	driver.Endpoint
	Number      uint32 `json:"number"` // running number of the listing
	NetworkName string `json:"network_name,omitempty"`
	Container   string `json:"container,omitempty"` // name
}

// Network is a network with its counts.
type Network struct {
	ID        string            `json:"id"`
	Name      string            `json:"name,omitempty"`
	Number    uint32            `json:"number"`
	Mode      string            `json:"mode"`
	Subnets   []string          `json:"subnets"`
	VIPs      []string          `json:"vips"` // its blocks of the service pool
	Internal  bool              `json:"internal"`
	Options   map[string]string `json:"options,omitempty"`
	Endpoints int               `json:"endpoints"`
	Services  int               `json:"services"`
}

// Port is a published port, or as many in a row as lead to one endpoint.
type Port struct {
	Protocol string         `json:"protocol"`         // tcp, udp
	Host     netip.AddrPort `json:"host"`             // the first; the unspecified address stands for every one of its family
	Port     uint16         `json:"port"`             // of the container, the first
	Count    uint16         `json:"count"`            // in a row
	Routed   bool           `json:"routed,omitempty"` // Host is the container's own address

	Endpoint    string       `json:"endpoint"` // id
	Container   string       `json:"container,omitempty"`
	NetworkID   string       `json:"network_id"`
	NetworkName string       `json:"network_name,omitempty"`
	Addresses   []netip.Addr `json:"addresses"` // of the endpoint

	State  service.Phase `json:"state,omitempty"` // of the container; "" while nobody has told of it
	Active bool          `json:"active"`          // gets new connections now

	Reach   Reach          `json:"reach"`
	Sources []netip.Prefix `json:"sources,omitempty"` // those of publish_sources
	Uplinks []string       `json:"uplinks"`           // devices from which others reach it, with the address if it is one of many
}

// Reach says from where a published port is reached, besides the host itself.
type Reach string

// What reaches a published port.
const (
	ReachAnywhere Reach = "anywhere" // whoever can send to the host, and its containers
	ReachSources  Reach = "sources"  // from outside only the network's publish_sources
	ReachHost     Reach = "host"     // a loopback address: nobody else
)

// Verification is what Verify found.
type Verification struct {
	Differences []drift.Difference `json:"differences"` // that there are, after the repair if one was asked for
	Mended      []drift.Difference `json:"mended"`      // that there were before it
	Notes       []drift.Difference `json:"notes"`
}

// Status is one line per subsystem, worst news first in State.
type Status struct {
	Version    string      `json:"version"`
	Daemon     bool        `json:"daemon"` // false: the command line looked itself
	Ready      bool        `json:"ready"`
	Subsystems []Subsystem `json:"subsystems"`
}

// Subsystem is a part of mustang and how it is.
type Subsystem struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, degraded, failed, off
	Detail string `json:"detail"`
}
