// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mustang-net/mustang/bpf"
)

// MaxSlots is how many slots a service may have, and so how many backends. Weights whose sum is higher
// are scaled down to it.
const MaxSlots = 1024

// MaxWeight is the highest weight of a backend.
const MaxWeight = 100

// normal checks what can be told from a spec and the host alone, and returns it with weights filled in
// and addresses in their shortest form. Of VIPs that are good, as the caller knows, the host is not asked again.
func (m *Manager) normal(spec Spec, good map[netip.Addr]struct{}) (Spec, error) {
	spec.Frontend.Addr = spec.Frontend.Addr.Unmap()
	if err := m.checkSpec(&spec, good); err != nil {
		return Spec{}, fmt.Errorf("service %s: %w", text(spec.Frontend), err)
	}
	return spec, nil
}

func (m *Manager) checkSpec(spec *Spec, good map[netip.Addr]struct{}) error {
	if err := checkName(spec.Name); err != nil {
		return err
	}
	f := spec.Frontend
	switch f.Protocol {
	case bpf.ProtocolAny, bpf.ProtocolTCP, bpf.ProtocolUDP:
	default:
		return invalidf("protocol %s is not supported: use tcp, udp or any", f.Protocol)
	}
	if f.Port == 0 && f.Protocol != bpf.ProtocolAny {
		return invalidf("port 0 stands for every port of every protocol: leave %s out, or give a port", strings.ToLower(f.Protocol.String()))
	}
	if _, known := good[f.Addr]; !known {
		if err := m.checkVIP(f.Addr); err != nil {
			return err
		}
	}
	if len(spec.Backends) > MaxSlots {
		return invalidf("%d backends are too many: at most %d", len(spec.Backends), MaxSlots)
	}
	targets := make([]Target, len(spec.Backends))
	seen := make(map[netip.AddrPort]bool, len(targets))
	for i, t := range spec.Backends {
		t.Addr = netip.AddrPortFrom(t.Addr.Addr().Unmap(), t.Addr.Port())
		if err := checkTarget(f, &t); err != nil {
			return fmt.Errorf("backend %s: %w", target(t.Addr), err)
		}
		if seen[t.Addr] {
			return invalidf("backend %s is named twice: give it a weight instead", target(t.Addr))
		}
		seen[t.Addr] = true
		targets[i] = t
	}
	spec.Backends = targets
	return nil
}

// checkName refuses names that [Manager.Remove] would read as something else.
func checkName(name string) error {
	if name == "" {
		return nil
	}
	if len(name) > 253 || strings.ContainsAny(name, " \t\n:/[]") {
		return invalidf("name %q: use at most 253 letters, digits, dots, dashes and underscores", name)
	}
	if _, err := strconv.ParseUint(name, 10, 64); err == nil {
		return invalidf("name %q would be read as an id: use at least one letter", name)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return invalidf("name %q would be read as an address: use another", name)
	}
	return nil
}

// checkVIP refuses addresses that somebody has: a VIP would draw the traffic meant for them.
func (m *Manager) checkVIP(vip netip.Addr) error {
	if what := unusable(vip); what != "" {
		return invalidf("%s cannot be a VIP: it is %s: choose an address of %s that nobody has", vip, what, m.handRange(vip))
	}
	own, err := m.hostAddr(vip)
	if err != nil {
		return fmt.Errorf("cannot tell whether %s is an address of this host: %w", vip, err)
	}
	if own {
		return conflictf("%s cannot be a VIP: it is an address of this host: choose an address of %s that nobody has", vip, m.handRange(vip))
	}
	if m.byAddr[vip] != nil {
		return conflictf("%s cannot be a VIP: it is the address of an endpoint: choose an address of %s that nobody has", vip, m.handRange(vip))
	}
	for _, n := range m.networks {
		for _, b := range n.blocks {
			if b.Contains(vip) {
				return conflictf("%s cannot be a VIP by hand: %s belongs to network %s: choose an address of %s", vip, b, n.label(), m.handRange(vip))
			}
		}
	}
	return nil
}

// checkInside refuses a VIP outside the service pools (CVE-2020-8554): whoever may add services could
// draw the host's and every sandbox's traffic to any address of the world. A service that there is
// keeps its frontend, so that what `svc ls` prints can always be applied.
func (m *Manager) checkInside(f bpf.Frontend) error {
	if m.inPools(f.Addr) || m.byFrontend[f] != nil {
		return nil
	}
	return invalidf("service %s: %s cannot be a VIP: it is outside %s: choose an address of %s, or widen service_pools in mustang.toml",
		text(f), f.Addr, m.poolsText(), m.handRange(f.Addr))
}

// warnOutside tells of VIPs that were made when the service pools were others.
func (m *Manager) warnOutside() {
	var outside []netip.Addr
	for vip := range m.handVIPs {
		if !m.inPools(vip) {
			outside = append(outside, vip)
		}
	}
	if len(outside) > 0 {
		slices.SortFunc(outside, netip.Addr.Compare)
		m.log.WithField("vips", outside).Warnf("hand-made services outside %s: they stay, but no more can be made there: "+
			"widen service_pools in mustang.toml, or give them other addresses", m.poolsText())
	}
}

// unusable says what kind of address can be neither VIP nor backend; "" if it can.
func unusable(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "missing"
	case a.Zone() != "":
		return "bound to an interface"
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "the broadcast address"
	}
	return ""
}

func checkTarget(f bpf.Frontend, t *Target) error {
	a := t.Addr.Addr()
	if what := unusable(a); what != "" {
		return invalidf("it is %s: give the address that sandboxes reach it at", what)
	}
	if a.Is4() != f.Addr.Is4() {
		return invalidf("it is of another family than the frontend: make a frontend for each family")
	}
	if f.Port == 0 && t.Addr.Port() != 0 {
		return invalidf("a frontend without a port maps ports one to one: leave the backend's port out, or give the frontend one")
	}
	if t.Weight == 0 {
		t.Weight = 1
	}
	if t.Weight > MaxWeight {
		return invalidf("weight %d is too high: use 1 to %d", t.Weight, MaxWeight)
	}
	return nil
}

// checkFree refuses a new spec that collides with the services there are.
func (m *Manager) checkFree(spec Spec) error {
	if h := m.byFrontend[spec.Frontend]; h != nil {
		return conflictf("service %s exists already, with id %d: remove it first, or use `mustang svc apply`", text(spec.Frontend), h.id)
	}
	if h := m.byName[spec.Name]; h != nil {
		return conflictf("service %s: name %q belongs to service %d: choose another", text(spec.Frontend), spec.Name, h.id)
	}
	for _, t := range spec.Backends {
		a := t.Addr.Addr()
		if a == spec.Frontend.Addr || m.handVIPs[a] != nil || m.nameVIPs[a] != nil {
			return conflictf("service %s: backend %s is a VIP: name the backends behind it", text(spec.Frontend), target(t.Addr))
		}
	}
	for _, h := range m.hand {
		for _, t := range h.Backends {
			if t.Addr.Addr() == spec.Frontend.Addr {
				return conflictf("%s cannot be a VIP: it is a backend of service %d: choose another address", spec.Frontend.Addr, h.id)
			}
		}
	}
	return m.checkInside(spec.Frontend)
}

// normalSet checks specs one by one and against each other.
func (m *Manager) normalSet(specs []Spec) ([]Spec, error) {
	set := make([]Spec, len(specs))
	frontends := make(map[bpf.Frontend]struct{}, len(specs))
	vips := make(map[netip.Addr]struct{}, len(specs))
	names := map[string]bool{}
	for i, s := range specs {
		s, err := m.normal(s, vips)
		if err != nil {
			return nil, err
		}
		if _, dup := frontends[s.Frontend]; dup {
			return nil, invalidf("service %s is named twice: merge its backends into one", text(s.Frontend))
		}
		if s.Name != "" && names[s.Name] {
			return nil, invalidf("service %s: name %q is used twice: choose another", text(s.Frontend), s.Name)
		}
		frontends[s.Frontend] = struct{}{}
		vips[s.Frontend.Addr] = struct{}{}
		names[s.Name] = true
		set[i] = s
	}
	for _, s := range set {
		for _, t := range s.Backends {
			if _, vip := vips[t.Addr.Addr()]; vip || m.nameVIPs[t.Addr.Addr()] != nil {
				return nil, conflictf("service %s: backend %s is a VIP: name the backends behind it", text(s.Frontend), target(t.Addr))
			}
		}
	}
	for _, s := range set {
		if err := m.checkInside(s.Frontend); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// target writes a backend's address, without a port if it has none.
func target(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}
