// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
)

// AddByHand makes an interface of any sandbox known to the datapath: `mustang ep add`. It has host
// scope: it is in no network and reaches hand-made services. The programs are attached to its host end,
// unless an operator did that already.
func (m *Manager) AddByHand(_ context.Context, ifname, netns string) (Endpoint, error) {
	in, err := m.links.FindInside(netns, ifname)
	if err != nil {
		return Endpoint{}, err
	}
	if len(in.Addrs) == 0 {
		return Endpoint{}, fmt.Errorf("%s in %s has no address: give it one first", ifname, netns)
	}
	cookie, err := m.links.Cookie(netns)
	if err != nil {
		return Endpoint{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := &Endpoint{Source: SourceHand, MAC: in.MAC.String(), IfName: ifname, Sandbox: netns, Cookie: cookie}
	for _, p := range in.Addrs {
		if p.Addr().Is4() && !e.IPv4.IsValid() {
			e.IPv4 = p
		} else if p.Addr().Is6() && !e.IPv6.IsValid() {
			e.IPv6 = p
		}
	}
	e.ID = "ep-" + e.addrs()[0].String()
	for _, other := range m.endpoints {
		for _, a := range other.addrs() {
			if other.ID != e.ID && (a == e.IPv4.Addr() || a == e.IPv6.Addr()) {
				return Endpoint{}, fmt.Errorf("%s is the address of the endpoint %s already", a, other.ID)
			}
		}
	}
	if in.Peer != 0 {
		if err := m.findHostEnd(e, in.Peer); err != nil {
			return Endpoint{}, err
		}
	}
	if err := m.put(bucketEndpoints, e.ID, e); err != nil {
		return Endpoint{}, fmt.Errorf("record the endpoint %s: %w", e.ID, err)
	}
	m.endpoints[e.ID] = e
	return *e, m.setUpByHand(e)
}

func (m *Manager) findHostEnd(e *Endpoint, index int) error {
	name, err := m.links.Name(index)
	if err != nil {
		return fmt.Errorf("the other end of %s is not on this host: %w", e.IfName, err)
	}
	dev, err := m.links.Find(name)
	if err != nil {
		return err
	}
	e.HostIf, e.Index, e.HostMAC = name, index, dev.MAC.String()
	return nil
}

// setUpByHand makes the kernel agree with the record; repeating it changes nothing.
func (m *Manager) setUpByHand(e *Endpoint) error {
	for _, a := range e.addrs() {
		ep := bpf.Endpoint{Addr: a, IfIndex: e.Index, Redirect: e.HostIf != "", MAC: parseMAC(e.MAC), HostMAC: parseMAC(e.HostMAC)}
		if err := m.datapath.PutEndpoint(ep); err != nil {
			return err
		}
	}
	if e.HostIf != "" && !m.links.HasClsact(e.HostIf) {
		if err := m.attach(e); err != nil {
			return err
		}
	}
	return m.enter(nil, e, e.Cookie)
}

// RemoveByHand forgets an endpoint made by hand, by address.
func (m *Manager) RemoveByHand(_ context.Context, ref string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	addr, err := netip.ParseAddr(ref)
	if err != nil {
		return fmt.Errorf("remove the endpoint %q: give its address, as `mustang ep ls` shows it", ref)
	}
	for _, e := range m.endpoints {
		for _, a := range e.addrs() {
			if a != addr {
				continue
			}
			if e.Source != SourceHand {
				return fmt.Errorf("the endpoint %s belongs to a container: remove that", ref)
			}
			return m.tearDownEndpoint(e)
		}
	}
	return fmt.Errorf("endpoint %s: %w: `mustang ep ls` lists them", ref, ErrNotFound)
}
