// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/ports"
)

// hold keeps a port from others on the host, where there is a daemon to do so.
func (m *Manager) hold(e *Endpoint, protocol bpf.Protocol, host netip.AddrPort, port uint16) error {
	if m.ports == nil {
		return nil
	}
	p := ports.Port{Addr: host, Protocol: transport(protocol)}
	m.ports.Restrict(p, m.sources(e))
	err := m.ports.Hold(p, e.via(host, port, e.publishes4(protocol, host.Port(), port)))
	if e.Source == SourceCNI && errors.Is(err, ports.ErrReserved) {
		return nil // by its runtime, for it
	}
	return err
}

// holdBoth keeps a port of every address of both families, at half the time of two of hold.
func (m *Manager) holdBoth(e *Endpoint, protocol bpf.Protocol, number, port uint16) error {
	if m.ports == nil {
		return nil
	}
	at4, at6 := netip.AddrPortFrom(netip.IPv4Unspecified(), number), netip.AddrPortFrom(netip.IPv6Unspecified(), number)
	for _, at := range []netip.AddrPort{at4, at6} {
		m.ports.Restrict(ports.Port{Addr: at, Protocol: transport(protocol)}, m.sources(e))
	}
	return m.ports.HoldEvery(transport(protocol), number, e.via(at4, port, true), e.via(at6, port, true))
}

// holdAgain keeps what the endpoint has published, past errors: the programs lead there all the same.
func (m *Manager) holdAgain(e *Endpoint) error {
	var errs []error
	every4, every6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for _, p := range e.Published {
		at := p.Host.Addr()
		both := at == every4 && slices.Contains(e.Published, p.on(every6))
		if p.Routed || at == every6 && slices.Contains(e.Published, p.on(every4)) {
			continue // not of the host, or held with those of the other family
		}
		p.each(func(host netip.AddrPort, port uint16) {
			if both && m.holdBoth(e, p.Protocol, host.Port(), port) == nil {
				return
			}
			errs = append(errs, m.hold(e, p.Protocol, host, port))
			if both {
				errs = append(errs, m.hold(e, p.Protocol, netip.AddrPortFrom(every6, host.Port()), port))
			}
		})
	}
	return errors.Join(errs...)
}

// letGo undoes hold. A port that another endpoint has published as well stays held, and leads there.
func (m *Manager) letGo(e *Endpoint, had []Published) {
	if m.ports == nil {
		return
	}
	heirs := m.heirs(e, had)
	for _, p := range had {
		if p.Routed {
			continue
		}
		p.each(func(host netip.AddrPort, _ uint16) {
			if h, ok := heirs[frontend{p.Protocol, host}]; ok {
				if err := m.hold(h.Endpoint, p.Protocol, host, h.port); err != nil {
					m.log.WithError(err).WithField("endpoint", h.ID).Warn("keep a published port from others")
				}
				return
			}
			m.ports.Release(ports.Port{Addr: host, Protocol: transport(p.Protocol)})
		})
	}
}

// frontend is a port of the host's.
type frontend struct {
	protocol bpf.Protocol
	host     netip.AddrPort
}

// heir is an endpoint that has a frontend lead to its port.
type heir struct {
	*Endpoint
	port uint16
}

// heirs are the first of the other endpoints that have published the same ports. One look at every range of theirs
// is enough: there may be thousands of ports, and hardly ever an heir.
func (m *Manager) heirs(e *Endpoint, had []Published) map[frontend]heir {
	lowest, highest := uint16(65535), uint16(0)
	for _, p := range had {
		lowest, highest = min(lowest, p.Host.Port()), max(highest, p.Host.Port()+p.Count-1)
	}
	out := map[frontend]heir{}
	for _, other := range m.endpoints {
		if other == e {
			continue
		}
		for _, p := range other.Published {
			if p.Routed || p.Host.Port() > highest || p.Host.Port()+p.Count-1 < lowest {
				continue
			}
			p.each(func(host netip.AddrPort, port uint16) {
				f := frontend{p.Protocol, host}
				if was, ok := out[f]; !ok || other.PublishedAt.Before(was.PublishedAt) {
					out[f] = heir{other, port}
				}
			})
		}
	}
	return out
}

// publishes4 tells whether a port of every IPv4 address of the host leads to the endpoint's.
func (e *Endpoint) publishes4(protocol bpf.Protocol, number, port uint16) bool {
	return slices.ContainsFunc(e.Published, func(p Published) bool {
		return p.Protocol == protocol && p.Host.Addr() == netip.IPv4Unspecified() && p.includes(number) && p.Port+number-p.Host.Port() == port
	})
}

// via is where a socket of the host's is translated for a port: the port itself, or where the endpoint has no address of the family, the
// same of IPv4, if every4 says that it leads there as well, or else the endpoint.
func (e *Endpoint) via(host netip.AddrPort, port uint16, every4 bool) netip.AddrPort {
	own := e.addrs()
	if !slices.ContainsFunc(own, func(a netip.Addr) bool { return a.Is6() == host.Addr().Is6() }) {
		if host.Addr().IsUnspecified() && own[0].Is4() && every4 {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), host.Port())
		}
		return netip.AddrPortFrom(own[0], port)
	}
	switch {
	case !host.Addr().IsUnspecified():
		return host
	case host.Addr().Is6():
		return netip.AddrPortFrom(netip.IPv6Loopback(), host.Port())
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), host.Port())
}
