// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
)

// Names are what addresses and ids mean at one moment.
type Names struct {
	Ends     map[netip.Addr]End // endpoints and the host, without port
	Services map[netip.Addr]End // VIPs, without port
	Sandbox  map[uint64]End     // by netns cookie
	Device   func(ifindex int) string
}

// remembering asks for the name of each device once: of a flood of packets each comes from one, and the kernel takes long to say.
func (n Names) remembering() Names {
	ask, known := n.Device, map[int]string{}
	if ask == nil {
		return n
	}
	n.Device = func(ifindex int) string {
		name, ok := known[ifindex]
		if !ok {
			name = ask(ifindex)
			known[ifindex] = name
		}
		return name
	}
	return n
}

// known tells whether all of an event's ends that could have a name have one.
func (n Names) known(e bpf.Event) bool {
	if e.Cookie != 0 {
		if _, ok := n.Sandbox[e.Cookie]; !ok {
			return false
		}
	}
	if e.Service != 0 {
		_, vip := n.Services[e.To.Addr()]
		_, own := n.Ends[e.To.Addr()]
		return vip || own
	}
	return true
}

// name turns what the programs tell into what a person reads.
func (n Names) name(e bpf.Event) Event {
	out := Event{
		Time: e.Time, Kind: e.Kind, Reason: e.Reason, Meaning: e.Meaning, Path: e.Path, Protocol: protocolName(e.Protocol, e),
		From: n.end(e.From), To: n.end(e.To), Sent: e.Sent, Received: e.Received,
	}
	if e.Via.IsValid() {
		out.Via = n.end(e.Via)
		if e.Path == bpf.PathEgress { // it is the host's address, and the container that asks is known
			out.Via = End{Addr: e.Via}
		}
	}
	if sandbox, ok := n.Sandbox[e.Cookie]; ok && e.Cookie != 0 {
		if out.From.Container == "" {
			out.From.Container = sandbox.Container
		}
		if out.From.Network == "" {
			out.From.Network = sandbox.Network
		}
	}
	if e.IfIndex != 0 && n.Device != nil {
		out.Device = n.Device(e.IfIndex)
	}
	switch e.Kind {
	case bpf.EventDrop:
		out.Verdict = Dropped
	case bpf.EventRefuse:
		out.Verdict = Refused
	default:
		out.Verdict = Forwarded
	}
	return out
}

func (n Names) end(at netip.AddrPort) End {
	if !at.IsValid() {
		return End{}
	}
	end, ok := n.Services[at.Addr()]
	if !ok {
		end = n.Ends[at.Addr()]
	}
	end.Addr = at
	return end
}

// protocolName is lower case, as ports are written: tcp. Of a packet that nobody parsed there is none.
func protocolName(p bpf.Protocol, e bpf.Event) string {
	switch p {
	case bpf.ProtocolTCP:
		return "tcp"
	case bpf.ProtocolUDP:
		return "udp"
	case 1, 58:
		return "icmp"
	case 0:
		if !e.From.IsValid() && !e.To.IsValid() {
			return ""
		}
	}
	return p.String()
}
