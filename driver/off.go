// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/nft"
	"github.com/mustang-net/mustang/service"
)

// Tables is what the driver writes to nftables for networks with ebpf=off; [nft.Tables] is the real one.
type Tables interface {
	// Supported refuses a host that cannot do it, saying what is missing.
	Supported() error
	// CheckFirewall refuses a host whose firewall would drop what it forwards between endpoints.
	CheckFirewall() error
	PutSandbox(nft.Sandbox) error
	DeleteSandbox(cookie uint64, path string) error
	SetEnds([]nft.End) error
}

// Off tells whether the network does without eBPF.
func (n *Network) Off() bool { return n != nil && n.Options.EBPF == "off" }

// viaHost tells whether endpoints without eBPF reach each other through the host's routing: nobody answers
// for the others on their links then.
func (n *Network) viaHost() bool {
	switch n.Options.Mode {
	case ModeBridge, ModeMacvlan, ModeIPvlan:
		return false
	}
	return n.Off()
}

// checkOff refuses a network without eBPF where this host cannot do it.
func (m *Manager) checkOff(n *Network) error {
	if !n.Off() {
		return nil
	}
	if err := m.tables.Supported(); err != nil {
		return err
	}
	if n.Options.Mode == ModeMacvlan || n.Options.Mode == ModeIPvlan {
		return nil // the host's firewall does not see them
	}
	if err := m.tables.CheckFirewall(); err != nil {
		return err
	}
	if n.viaHost() && len(n.IPv6) > 0 {
		if err := m.links.CanForward6(); err != nil {
			return fmt.Errorf("network option ebpf=%q with --ipv6: %w", "off", err)
		}
	}
	if n.viaHost() {
		for _, s := range slices.Concat(n.IPv4, n.IPv6) {
			if !s.Gateway.IsValid() {
				return fmt.Errorf("network option ebpf=%q: the subnet %s has no gateway, through which its endpoints reach each other: give it one with --gateway",
					"off", s.Pool)
			}
		}
	}
	return nil
}

// setEnds tells the host's tables all devices that lead to endpoints without eBPF, but for those of one endpoint
// or network that goes.
func (m *Manager) setEnds(without ...string) error {
	var ends []nft.End
	for _, n := range m.networks {
		if !n.Off() || slices.Contains(without, n.ID) {
			continue
		}
		kind := nft.Bridge
		if m.mode(n).end() == bpf.SandboxEnd {
			kind = nft.Slave
		}
		if name := m.hostDevice(n); name != "" {
			var gateways []netip.Addr
			for _, gw := range n.gateways() {
				gateways = append(gateways, gw.Addr())
			}
			ends = append(ends, nft.End{Name: name, Kind: kind, Network: n.Number, Gateways: gateways})
		}
	}
	for _, e := range m.endpoints {
		n := m.networks[e.NetworkID]
		if !n.Off() || e.HostIf == "" || slices.Contains(without, e.ID) {
			continue
		}
		kind := nft.Port
		if n.viaHost() {
			kind = nft.Routed
		}
		ends = append(ends, nft.End{Name: e.HostIf, Kind: kind, Network: n.Number, Addrs: e.addrs(), Gateways: n.gatewaysOf(e)})
	}
	slices.SortFunc(ends, func(a, b nft.End) int { return cmp.Compare(a.Name, b.Name) })
	return m.tables.SetEnds(ends)
}

// hostDevice is the device of the network itself by which the host reaches endpoints, "" for none.
func (m *Manager) hostDevice(n *Network) string {
	switch mode := m.mode(n).(type) {
	case bridge:
		return mode.name(n)
	case slave:
		if mode.hostReaches(n) {
			return mode.host(n)
		}
	}
	return ""
}

// guardOff is what the programs are for an endpoint without eBPF.
func (m *Manager) guardOff(n *Network, e *Endpoint) error {
	if err := m.setEnds(); err != nil || !n.viaHost() {
		return err
	}
	return m.links.Forward(e.HostIf, e.IPv6.IsValid())
}

// Sandboxes are those on a network without eBPF.
func (m *Manager) Sandboxes() (out []nft.Sandbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[uint64]bool{}
	for _, e := range m.endpoints {
		if e.Cookie != 0 && !seen[e.Cookie] && m.hasOff(e.Cookie, nil) {
			seen[e.Cookie] = true
			out = append(out, nft.Sandbox{Cookie: e.Cookie, Path: e.Sandbox, Networks: m.networksOf(e.Cookie, nil)})
		}
	}
	return out
}

// networksOf are the numbers of the networks that a sandbox is on, other than through the endpoint without.
func (m *Manager) networksOf(cookie uint64, without *Endpoint) (out []uint32) {
	for _, e := range m.endpoints {
		if n := m.networks[e.NetworkID]; e != without && e.Cookie == cookie && n != nil {
			out = append(out, n.Number)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// hasOff tells whether a sandbox is on a network without eBPF, other than through the endpoint without.
func (m *Manager) hasOff(cookie uint64, without *Endpoint) bool {
	for _, e := range m.endpoints {
		if e != without && e.Cookie == cookie && m.networks[e.NetworkID].Off() {
			return true
		}
	}
	return false
}

// hasOn tells whether the hooks look after a sandbox, other than for the endpoint without.
func (m *Manager) hasOn(cookie uint64, without *Endpoint) bool {
	for _, e := range m.endpoints {
		if e != without && e.Cookie == cookie && !m.networks[e.NetworkID].Off() {
			return true
		}
	}
	return false
}

// hops are the destinations of an endpoint without eBPF that its gateway leads to, as nobody answers for
// them on its link. The half of its subnet that has the gateway itself comes last: it is the way to the others.
func (m *Manager) hops(n *Network, e *Endpoint, routes []netip.Prefix) (out []Hop) {
	for _, gw := range n.gatewaysOf(e) {
		for _, p := range routes {
			if p.Addr().Is4() == gw.Is4() {
				out = append(out, Hop{p, gw})
			}
		}
	}
	for _, gw := range n.gatewaysOf(e) {
		s, _ := n.subnetOf(gw)
		low, high, ok := halves(s.Pool)
		if !ok {
			continue
		}
		if low.Contains(gw) {
			low, high = high, low
		}
		out = append(out, Hop{low, gw}, Hop{high, gw})
	}
	return out
}

// handBlocks are where hand-made services are: without hooks, a connection to one needs a way before it is
// translated. One endpoint of a sandbox has it, as a second one cannot have the same route.
func (m *Manager) handBlocks(n *Network, e *Endpoint) (out []netip.Prefix) {
	if !n.Off() {
		return nil
	}
	for _, other := range m.endpoints {
		if other.ID != e.ID && other.Sandbox == e.Sandbox && m.networks[other.NetworkID].Off() {
			return nil
		}
	}
	for _, p := range m.pools {
		out = append(out, service.HandBlock(p))
	}
	return out
}

// halves splits a prefix; an address cannot be split.
func halves(p netip.Prefix) (low, high netip.Prefix, ok bool) {
	p = p.Masked()
	bits := p.Bits()
	if bits >= p.Addr().BitLen() {
		return low, high, false
	}
	b := p.Addr().AsSlice()
	b[bits/8] |= 0x80 >> (bits % 8)
	top, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), bits+1), netip.PrefixFrom(top, bits+1), true
}

// leaveTables ends what a sandbox had through an endpoint without eBPF.
func (m *Manager) leaveTables(e *Endpoint) error {
	if !m.hasOff(e.Cookie, nil) {
		return nil
	}
	cookie, err := m.links.Cookie(e.Sandbox)
	if errors.Is(err, link.ErrNoNetns) || err == nil && cookie != e.Cookie {
		return m.tables.DeleteSandbox(e.Cookie, e.Sandbox) // it ended, and all in it
	}
	if err != nil {
		return err
	}
	if !m.hasOff(e.Cookie, e) {
		err := m.tables.DeleteSandbox(e.Cookie, e.Sandbox)
		for _, p := range m.pools {
			err = errors.Join(err, m.links.UnrefuseInside(e.Sandbox, p))
		}
		return err
	}
	return m.putTables(e, e)
}

// putTables makes the tables of an endpoint's sandbox, as if it had no endpoint without.
func (m *Manager) putTables(e, without *Endpoint) error {
	// VIPs that have no route of their own are another network's
	for _, p := range m.pools {
		if p.Addr().Is6() && !e.IPv6.IsValid() {
			continue
		}
		if err := m.links.RefuseInside(e.Sandbox, p); err != nil {
			return err
		}
	}
	s := nft.Sandbox{Cookie: e.Cookie, Path: e.Sandbox, Networks: m.networksOf(e.Cookie, without)}
	var err error
	// where the hooks lead queries to our resolver, its answers must come as they are
	if m.resolver != nil && m.wantsNames(e.Cookie, without) && !m.hasOn(e.Cookie, without) {
		if s.DNSPort, err = m.resolver.Add(e.Cookie, e.Sandbox); err != nil {
			// names keep the engine's answers
			m.log.WithError(err).WithField("endpoint", e.ID).Warn("answer names in a sandbox")
		}
	}
	return m.tables.PutSandbox(s)
}

// wantsNames tells whether a network of a sandbox has services, other than through the endpoint without.
func (m *Manager) wantsNames(cookie uint64, without *Endpoint) bool {
	for _, e := range m.endpoints {
		if n := m.networks[e.NetworkID]; e != without && e.Cookie == cookie && n != nil && n.Options.VIP {
			return true
		}
	}
	return false
}

func (m *Manager) anyOff() bool {
	for _, n := range m.networks {
		if n.Off() {
			return true
		}
	}
	return false
}
