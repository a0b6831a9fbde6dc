// SPDX-License-Identifier: Apache-2.0

// Package cni attaches containers to networks as runtimes of the CNI specification ask for.
package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/mustang-net/mustang/driver"
)

// Host does what the plugin is asked for: [Manager] in the daemon, or in the plugin's own process without one.
type Host interface {
	// Add attaches a container. Repeating it is an error, as the specification wants.
	Add(ctx context.Context, a Attachment) (Attached, error)
	// Delete undoes Add. What is missing is no error.
	Delete(ctx context.Context, d Detachment) (Detached, error)
	// Check tells whether an attachment is as Add made it.
	Check(ctx context.Context, a Attachment) error
	// Collect deletes the attachments of a network that are not valid.
	Collect(ctx context.Context, network string, valid []Attachee) (Collected, error)
	// CreateNetwork makes a network before there is a container for it, and returns it with the subnets that it has.
	CreateNetwork(ctx context.Context, n Network) (Network, error)
	// RemoveNetwork removes a network, by name, unless a container is on it. A missing one is no error.
	RemoveNetwork(ctx context.Context, name string) error
	// CanAdd tells whether a network could take another container.
	CanAdd(ctx context.Context, n Network) error
}

// Attachee is one interface of a container.
type Attachee struct {
	Container string `json:"container"`
	IfName    string `json:"ifname"`
}

// String is how leases and messages name an attachment.
func (a Attachee) String() string { return a.Container + "/" + a.IfName }

// Key is what an attachment is known by: runtimes tell no more when they end it.
type Key struct {
	Network string `json:"network"` // name
	Attachee
}

// endpoint is the id of the attachment's endpoint, the same whenever it is made.
func (k Key) endpoint() string {
	return digest(k.Network + "\x00" + k.Container + "\x00" + k.IfName)
}

// NetworkID is the id of a network by its name. It is what nerdctl calls it, too.
func NetworkID(name string) string { return digest(name) }

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Network is what a configuration says of a network.
type Network struct {
	Name     string            `json:"name"`
	Options  map[string]string `json:"options,omitempty"` // those of `docker network create --opt`
	Internal bool              `json:"internal,omitempty"`
	IPv6     bool              `json:"ipv6,omitempty"` // wants a subnet of IPv6, if it names none
	Ranges   []Range           `json:"ranges,omitempty"`
	// Delegated says that another plugin hands out the addresses.
	Delegated bool `json:"delegated,omitempty"`
}

// Range is a subnet of a network.
type Range struct {
	Subnet  netip.Prefix `json:"subnet"`
	Range   netip.Prefix `json:"range,omitzero"`   // of the subnet, where addresses are taken from that nobody asked for
	First   netip.Addr   `json:"first,omitzero"`   // the same by the first of them and
	Last    netip.Addr   `json:"last,omitzero"`    // the last one
	Gateway netip.Addr   `json:"gateway,omitzero"` // or the first address of Range, or of the subnet
}

// Attachment is what ADD asks for.
type Attachment struct {
	Key
	Of      Network              `json:"of"`
	Sandbox string               `json:"sandbox"`         // path of the network namespace
	IPs     []netip.Addr         `json:"ips,omitempty"`   // asked for
	Given   []Given              `json:"given,omitempty"` // by another plugin
	MAC     string               `json:"mac,omitempty"`
	Ports   []driver.PortBinding `json:"ports,omitempty"`
	Limits  Limits               `json:"limits,omitzero"`
	Aliases []string             `json:"aliases,omitempty"` // service names
	Hops    []RouteTo            `json:"hops,omitempty"`    // routes that another plugin wants
	Routes  []netip.Prefix       `json:"routes,omitempty"`  // of CHECK: what there must be a route to
}

// Given is an address that another plugin has handed out.
type Given struct {
	Address netip.Prefix `json:"address"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

// Detachment is what DEL asks for.
type Detachment struct {
	Key
	// Sandbox is empty where the runtime ends the container later, which then keeps its device until it has ended.
	Sandbox string `json:"sandbox,omitempty"`
}

// Detached is what came of DEL.
type Detached struct {
	// Stays says that the container still runs, and keeps its device and addresses until it has ended.
	Stays bool `json:"stays,omitempty"`
}

// Collected is what GC came to.
type Collected struct {
	// Swept are attachments whose addresses the network's IPAM plugin is to take back; Delete then forgets them.
	Swept []Attachee `json:"swept,omitempty"`
}

// Attached is what ADD made.
type Attached struct {
	HostIf  string    `json:"host_if,omitempty"` // none of a slave
	HostMAC string    `json:"host_mac,omitempty"`
	MAC     string    `json:"mac,omitempty"`
	IPs     []Given   `json:"ips"`
	Routes  []RouteTo `json:"routes,omitempty"`
}

// RouteTo is a route inside the sandbox; without a router it is on the link.
type RouteTo struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via,omitzero"`
}

// The classes of refusals, told apart by marker method as those of services are.
type (
	invalid     struct{ error } // the configuration or a request makes no sense
	conflict    struct{ error } // clashes with what there is
	notFound    struct{ error }
	unavailable struct{ error } // not now
)

func (invalid) InvalidParameter() {}
func (conflict) Conflict()        {}
func (notFound) NotFound()        {}
func (unavailable) Unavailable()  {}

func (e invalid) Unwrap() error     { return e.error }
func (e conflict) Unwrap() error    { return e.error }
func (e notFound) Unwrap() error    { return e.error }
func (e unavailable) Unwrap() error { return e.error }

func invalidf(format string, args ...any) error  { return invalid{fmt.Errorf(format, args...)} }
func conflictf(format string, args ...any) error { return conflict{fmt.Errorf(format, args...)} }
