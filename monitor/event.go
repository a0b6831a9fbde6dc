// SPDX-License-Identifier: Apache-2.0

// Package monitor tells any number of watchers what the datapath does, by name.
package monitor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mustang-net/mustang/bpf"
)

// Verdicts.
const (
	Forwarded = "forwarded"
	Refused   = "refused" // the sender was told
	Dropped   = "dropped"
)

const (
	// EventLost is the kind of an event that says how many are missing before it.
	EventLost = "lost"
	// EventBegun is the kind of the first event of a watch, which says that nothing is missed from now on.
	EventBegun = "begun"
)

// Verdicts lists what a [Filter] takes as a verdict.
func Verdicts() []string { return append([]string{Forwarded, Refused, Dropped}, bpf.Reasons()...) }

// Event is something that the datapath did.
type Event struct {
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`              // new, end, drop, refuse, lost
	Verdict  string    `json:"verdict,omitempty"` // forwarded, refused, dropped
	Reason   string    `json:"reason,omitempty"`  // why not, as in `mustang status`
	Meaning  string    `json:"meaning,omitempty"` // of Reason
	Path     string    `json:"path,omitempty"`    // of a flow: socket, direct, packet, egress
	Protocol string    `json:"protocol,omitempty"`
	From     End       `json:"from,omitzero"`
	To       End       `json:"to,omitzero"`
	// Via is the backend of a service, or the source that a flow leaves the host with.
	Via      End    `json:"via,omitzero"`
	Device   string `json:"device,omitempty"`   // where a packet was seen
	Sent     uint64 `json:"sent,omitempty"`     // bytes at a flow's end, by From
	Received uint64 `json:"received,omitempty"` // bytes at a flow's end, by From
	Lost     uint64 `json:"lost,omitempty"`     // events that are missing here
}

// End is one end of a flow. What is not known is empty.
type End struct {
	Addr      netip.AddrPort `json:"addr,omitzero"`
	Container string         `json:"container,omitempty"` // name; "host" for the host itself
	Service   string         `json:"service,omitempty"`   // name
	Network   string         `json:"network,omitempty"`   // name, or id while the name is unknown
}

// String gives the name that a person knows the end by: web, db:5432, 192.0.2.7:1234.
func (e End) String() string {
	name := cmp.Or(e.Service, e.Container)
	switch {
	case name == "" && !e.Addr.IsValid():
		return "?"
	case name == "" && e.Addr.Port() == 0:
		return e.Addr.Addr().String()
	case name == "":
		return e.Addr.String()
	case e.Addr.Port() == 0:
		return name
	}
	return fmt.Sprintf("%s:%d", name, e.Addr.Port())
}

// Flow is who asks whom: web → db:5432 tcp. The port of a client that has a name says nothing and is left out.
func (e Event) Flow() string {
	from := e.From.String()
	if name := cmp.Or(e.From.Service, e.From.Container); name != "" && e.Kind != bpf.EventDrop {
		from = name
	}
	return strings.TrimSpace(from + " → " + e.To.String() + " " + e.Protocol)
}

// Outcome is the verdict with its reason: forwarded, or refused: no-backend.
func (e Event) Outcome() string {
	if e.Reason == "" {
		return e.Verdict
	}
	return e.Verdict + ": " + e.Reason
}

// Detail is what else there is to say.
func (e Event) Detail() string {
	var parts []string
	if via := e.Via; via != (End{}) && via.Addr != e.To.Addr {
		word := "to "
		if e.Path == bpf.PathEgress {
			word = "as "
		}
		parts = append(parts, word+via.String())
	}
	if e.Kind == bpf.EventEnd {
		text := "ended"
		if e.Path == bpf.PathSocket || e.Path == bpf.PathDirect {
			text += fmt.Sprintf(", %d bytes sent, %d received", e.Sent, e.Received)
		}
		parts = append(parts, text)
	}
	if e.Device != "" && e.Verdict == Dropped {
		parts = append(parts, "at "+e.Device)
	}
	return strings.Join(parts, ", ")
}

// Filter is which events to tell of. The zero Filter is all of them; of a field with several values one has to match, and all
// fields have to. Lost events are always told of.
type Filter struct {
	Networks   []string `json:"networks,omitempty"`   // names or ids: of either end
	Services   []string `json:"services,omitempty"`   // names, or VIPs
	Containers []string `json:"containers,omitempty"` // names: of either end, or the backend
	Verdicts   []string `json:"verdicts,omitempty"`   // forwarded, refused, dropped, or a reason
}

// Match tells whether the filter lets an event through.
func (f Filter) Match(e Event) bool {
	if e.Kind == EventLost || e.Kind == EventBegun {
		return true
	}
	among := func(wanted []string, got ...string) bool {
		return len(wanted) == 0 || slices.ContainsFunc(got, func(g string) bool { return g != "" && slices.Contains(wanted, g) })
	}
	return among(f.Networks, e.From.Network, e.To.Network, e.Via.Network) &&
		among(f.Services, e.To.Service, e.From.Service, e.To.Addr.Addr().String()) &&
		among(f.Containers, e.From.Container, e.To.Container, e.Via.Container) &&
		among(f.Verdicts, e.Verdict, e.Reason)
}
