// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"slices"

	"github.com/mustang-net/mustang/driver/link"
)

// Limits are how fast a container may receive (ingress) and send (egress), as the capability bandwidth of the conventions
// of CNI and the plugin of that name write it: bits per second, and bits at once. Zero is no limit.
type Limits struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

func (l Limits) receive() link.Rate { return link.Rate{Bits: l.IngressRate, Burst: l.IngressBurst} }
func (l Limits) send() link.Rate    { return link.Rate{Bits: l.EgressRate, Burst: l.EgressBurst} }

// Shaper is upstream's plugin bandwidth in a network's file, after ours. What a container receives it limits at the
// host's end of its pair. What a container sends it would limit behind our programs, which have sent it on by then: we do.
type Shaper struct {
	Limits
	Asked bool // what the runtime says for each container counts, too
	Told  bool // and the runtime says it to us
}

// ShaperOf looks into the file of a network below dir for the plugin bandwidth; nil if it has none.
func ShaperOf(dir, name string) (*Shaper, error) {
	file, err := find(dir, name)
	if err != nil {
		return nil, err
	}
	first := slices.IndexFunc(file.Plugins, func(p inList) bool { return p.Type == pluginType })
	at := slices.IndexFunc(file.Plugins, func(p inList) bool { return p.Type == "bandwidth" })
	if first < 0 || at < first {
		return nil, nil
	}
	return &Shaper{
		Limits: file.Plugins[at].Limits,
		Asked:  file.Plugins[at].Capabilities["bandwidth"],
		Told:   file.Plugins[first].Capabilities["bandwidth"],
	}, nil
}

// limits are those that are ours to set for an attachment; shaped says that there is a queue at the host's end,
// whoever makes it.
func (m *Manager) limits(a Attachment) (l Limits, shaped bool, err error) {
	s, err := m.Shaper(a.Network)
	if err != nil {
		return l, false, err
	}
	if s == nil {
		return a.Limits, a.Limits.IngressRate > 0, nil
	}
	if s.Limits != (Limits{}) { // which the plugin prefers, too
		return Limits{EgressRate: s.EgressRate, EgressBurst: s.EgressBurst}, true, nil
	}
	if s.Asked && !s.Told {
		return l, false, invalidf("the network %s has the plugin bandwidth with the capability of that name, without which mustang cannot limit "+
			"what containers send: add \"bandwidth\": true to the capabilities of mustang in its file", a.Network)
	}
	return Limits{EgressRate: a.Limits.EgressRate, EgressBurst: a.Limits.EgressBurst}, true, nil
}

// limit sets what limits returned. The undo is the removal of the device.
func (m *Manager) limit(a Attachment, l Limits, hostIf string) error {
	if l.IngressRate > 0 {
		if hostIf == "" {
			return invalidf("limit what %s of container %s receives: the network %s is on a parent, where nothing of the host's is between: "+
				"use mode=veth, bridge or netkit", a.IfName, a.Container, a.Network)
		}
		if err := m.Links.Limit("", hostIf, l.receive()); err != nil {
			return err
		}
	}
	if l.EgressRate > 0 {
		return m.Links.Limit(a.Sandbox, a.IfName, l.send())
	}
	return nil
}
