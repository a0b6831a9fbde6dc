// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mustang-net/mustang/bpf"
)

// The labels of containers and driver-opts of endpoints.
const (
	optService = "mustang.service"
	optVIP     = "mustang.vip"
	optHealth  = "mustang.health"
	optWeight  = "mustang.weight"
)

var labelKeys = []string{optService, optVIP, optHealth, optWeight}

// options are what labels and driver-opts ask for an endpoint.
type options struct {
	names  []string // service names besides its aliases
	off    bool     // its names keep the engine's answers
	vips   []netip.Addr
	strict bool
	weight uint32
}

// readOptions reads labels, overridden key by key by driver-opts. What it cannot read is left at its
// default and explained in problems.
func readOptions(labels, driverOpts map[string]string) (o options, problems []string) {
	get := func(key string) string {
		if v, ok := driverOpts[key]; ok {
			return strings.TrimSpace(v)
		}
		return strings.TrimSpace(labels[key])
	}
	for name := range strings.SplitSeq(get(optService), ",") {
		switch name = strings.TrimSpace(name); {
		case name == "":
		case badName(name):
			problems = append(problems, fmt.Sprintf("%s=%s: use names of at most 253 letters, digits, dots, dashes and underscores, with commas between them", optService, name))
		default:
			o.names = append(o.names, name)
		}
	}
	switch v := strings.ToLower(get(optVIP)); v {
	case "", "auto":
	case "off":
		o.off = true
	default:
		for s := range strings.SplitSeq(v, ",") {
			a, err := netip.ParseAddr(strings.TrimSpace(s))
			if err != nil {
				problems = append(problems, fmt.Sprintf("%s=%s: use auto, off or an address of the network's VIPs", optVIP, v))
				continue
			}
			o.vips = append(o.vips, a.Unmap())
		}
	}
	switch v := strings.ToLower(get(optHealth)); v {
	case "", "tiers":
	case "strict":
		o.strict = true
	default:
		problems = append(problems, fmt.Sprintf("%s=%s: use tiers or strict", optHealth, v))
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		switch {
		case key == "mustang.publish_sources":
			problems = append(problems, key+" as a label, which says nothing: give --network name=NETWORK,driver-opt="+key+"=…, or the network's option publish_sources")
		case strings.HasPrefix(key, "mustang.") && !slices.Contains(labelKeys, key):
			problems = append(problems, fmt.Sprintf("%s: the labels are %s", key, strings.Join(labelKeys, ", ")))
		}
	}
	o.weight = 1
	if v := get(optWeight); v != "" {
		w, err := strconv.ParseUint(v, 10, 32)
		if err != nil || w < 1 || w > MaxWeight {
			problems = append(problems, fmt.Sprintf("%s=%s: use 1 to %d", optWeight, v, MaxWeight))
		} else {
			o.weight = uint32(w)
		}
	}
	return o, problems
}

// badName reports whether a name can be neither asked for nor stored.
func badName(name string) bool { return len(name) > 253 || strings.ContainsAny(name, "/ \t\n\\") }

// CheckEndpointOptions refuses endpoint driver-opts with a value that [Manager.PutEndpoint] would only
// warn of, as it does of labels. Other keys are not its business.
func CheckEndpointOptions(opts map[string]string) error {
	if _, problems := readOptions(nil, opts); len(problems) > 0 {
		return invalidf("endpoint options: %s", strings.Join(slices.Compact(problems), "; "))
	}
	return nil
}

// names are the service names an endpoint goes by, in lower case and each once, whether it is alive
// or not and whatever its options make of them.
func (ep *endpoint) claims() []string {
	if ep.container == nil {
		return nil
	}
	var names []string
	for _, alias := range ep.container.Aliases[ep.ID] {
		// Its own name keeps its own address, also where an engine lists it as an alias.
		if !strings.EqualFold(alias, ep.container.Name) {
			names = append(names, strings.ToLower(alias))
		}
	}
	for _, name := range ep.options.names {
		names = append(names, strings.ToLower(name))
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		return name == "" || badName(name)
	})
}

// settle makes an endpoint a member of the services it belongs to now, and marks every service that
// it touches or touched.
func (m *Manager) settle(ep *endpoint) {
	before := ep.names
	ep.names = nil
	m.readOptions(ep)
	m.settlePorts(ep)
	if ep.net != nil && ep.net.VIP && ep.alive() && !ep.options.off {
		for _, name := range ep.claims() {
			if s := m.nameService(ep.net, name, ep); s != nil {
				ep.names = append(ep.names, s)
			}
		}
	}
	for _, s := range before {
		if !slices.Contains(ep.names, s) {
			s.members = slices.DeleteFunc(s.members, func(other *endpoint) bool { return other == ep })
			m.markNamed(s)
		}
	}
	for _, s := range ep.names {
		if at, is := slices.BinarySearchFunc(s.members, ep, compareID); !is {
			s.members = slices.Insert(s.members, at, ep)
		}
		m.place(s)
		m.markNamed(s)
	}
}

func compareID(a, b *endpoint) int { return strings.Compare(a.ID, b.ID) }

// readOptions brings the options of an endpoint up to date and logs what is wrong with them, once.
func (m *Manager) readOptions(ep *endpoint) {
	if ep.container == nil {
		return
	}
	var problems []string
	ep.options, problems = readOptions(ep.container.Labels, ep.Options)
	text := strings.Join(problems, "; ")
	if text != "" && text != ep.warned {
		m.log.WithField("container", ep.container.Name).Warn("ignored: " + text)
	}
	ep.warned = text
}

// nameService returns the service of a name, made for ep if it is new; nil if no VIP is left for it.
func (m *Manager) nameService(n *network, name string, ep *endpoint) *named {
	s := n.names[name]
	if s == nil {
		s = &named{name: name, net: n}
		if !m.allocate(s) {
			m.log.WithFields(map[string]any{"network": n.label(), "name": name}).
				Warn("no VIP is left for the name: it keeps the engine's answers")
			return nil
		}
		s.id = m.newID(s.head())
		n.names[name] = s
	}
	if src := ep.container.Source; src != "" && src != s.source {
		s.source = src
		m.unsaved[nameKey{n.ID, name}] = struct{}{}
	}
	return s
}

// head is the frontend of the service's first VIP.
func (s *named) head() bpf.Frontend {
	for _, vip := range s.vips {
		if vip.IsValid() {
			return bpf.Frontend{Addr: vip}
		}
	}
	return bpf.Frontend{}
}

// allocate gives a service a VIP in every family of its network where it has none, and reports
// whether it has any.
func (m *Manager) allocate(s *named) bool {
	n := s.net
	for family, block := range n.blocks {
		if s.vips[family].IsValid() || !block.IsValid() || !n.wants(family) {
			continue
		}
		taken := func(a netip.Addr) bool { return m.nameVIPs[a] != nil }
		vip, ok := vipFor(block, s.name, taken)
		if !ok && m.reclaim(n, family) {
			vip, ok = vipFor(block, s.name, taken)
		}
		if ok {
			m.setVIP(s, family, vip)
		}
	}
	return s.head().Addr.IsValid()
}

// reclaim ends the service of a name that no container has, for the sake of one that needs its VIP.
func (m *Manager) reclaim(n *network, family int) bool {
	var idle *named
	for _, s := range n.names {
		if len(s.members) == 0 && s.vips[family].IsValid() && (idle == nil || s.name < idle.name) {
			idle = s
		}
	}
	// Before the sources have told everything, a name without members may have some.
	if idle == nil || !m.synced {
		return false
	}
	m.dropNamed(idle)
	m.unsaved[nameKey{n.ID, idle.name}] = struct{}{}
	return true
}

// setVIP moves a service to a VIP.
func (m *Manager) setVIP(s *named, family int, vip netip.Addr) {
	if old := s.vips[family]; old.IsValid() {
		m.mark(bpf.Frontend{Addr: old})
		delete(m.nameVIPs, old)
	}
	s.vips[family] = vip
	m.nameVIPs[vip] = s
	m.unsaved[nameKey{s.net.ID, s.name}] = struct{}{}
}

// place gives a service the VIPs that its members ask for, the lowest if they disagree, and one of its
// own choice in a family where they ask for none and it has none.
func (m *Manager) place(s *named) {
	for family, block := range s.net.blocks {
		want, by := s.asked(family)
		if !want.IsValid() || want == s.vips[family] {
			continue
		}
		if !block.Contains(want) || m.nameVIPs[want] != nil {
			if s.warned == want {
				continue
			}
			s.warned = want
			m.log.WithFields(map[string]any{"container": by, "service": s.name}).
				Warnf("ignored: %s=%s: use a free address of %s", optVIP, want, block)
			continue
		}
		m.setVIP(s, family, want)
	}
	m.allocate(s)
}

// asked is the lowest VIP of a family that a member asks for, and the name of who does.
func (s *named) asked(family int) (vip netip.Addr, by string) {
	for _, ep := range s.members {
		for _, a := range ep.options.vips {
			if familyOf(a) == family && (!vip.IsValid() || a.Less(vip)) {
				vip, by = a, ep.container.Name
			}
		}
	}
	return vip, by
}

// namedByName finds the service of a name, of those on several networks the one with the lowest id.
func (m *Manager) namedByName(name string) (found *named) {
	for _, s := range m.nameVIPs {
		if s.name == strings.ToLower(name) && (found == nil || s.id < found.id) {
			found = s
		}
	}
	return found
}

// namedByID finds the service of a name by its id.
func (m *Manager) namedByID(id uint32) *named {
	for _, s := range m.nameVIPs {
		if s.id == id {
			return s
		}
	}
	return nil
}
