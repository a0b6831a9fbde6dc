// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// attach attaches the endpoint's programs where its mode has them.
func (m *Manager) attach(n *Network, e *Endpoint) error {
	end := m.mode(n).end()
	if end == bpf.SandboxEnd {
		return m.attachSlave(e)
	}
	dev := link.Device{Name: e.HostIf, Index: e.Index}
	if n == nil { // made by hand
		var err error
		if dev, err = m.links.Find(e.HostIf); err != nil {
			return err
		}
		end = hostEnd(dev.Type)
	}
	if e.Source == SourceCNI && end == bpf.HostEnd && !e.Shaped {
		return m.attachAtOnce(e, dev)
	}
	return m.attachDevice(e.HostIf, dev, end)
}

// attachAtOnce attaches programs to a host's end that stays where it is, as clsact filters: attaching two TCX links waits
// for two RCU grace periods under rtnetlink's lock, 25 ms in all, for which others that attach wait, too. Runtimes of CNI
// start many containers at a time. An end with a queue has links: upstream's plugin bandwidth puts a qdisc of its own where
// the filters' is.
func (m *Manager) attachAtOnce(e *Endpoint, dev link.Device) error {
	if err := m.datapath.Load(); err != nil {
		return err
	}
	ingress, egress := bpf.HostEnd.Programs()
	if err := m.links.AttachClsact(dev.Name, m.filter(ingress), m.filter(egress)); err != nil {
		return err
	}
	if e.into != "" {
		return nil // it is new
	}
	return m.datapath.DetachLXC(e.HostIf) // links of an older version's
}

// attachDevice attaches programs to a device in the namespace of the calling thread: by TCX, under a name
// that stays, or with clsact filters where the kernel has none.
func (m *Manager) attachDevice(name string, dev link.Device, end bpf.End) error {
	err := m.datapath.AttachLXC(name, dev.Index, end)
	if !errors.Is(err, bpf.ErrNoTCX) {
		return err
	}
	m.noTCX = true
	ingress, egress := end.Programs()
	return m.links.AttachClsact(dev.Name, m.filter(ingress), m.filter(egress))
}

// filter is the clsact filter of a program, none without a name.
func (m *Manager) filter(program string) link.Filter {
	if program == "" {
		return link.Filter{}
	}
	return link.Filter{Name: program, FD: m.datapath.ProgramFD(program)}
}

// attachSlave attaches the programs to a slave before the engine moves it into its sandbox, which TCX links
// survive, or inside. Filters would be lost in the move: without TCX they wait for its end.
func (m *Manager) attachSlave(e *Endpoint) error {
	if e.Sandbox == "" {
		err := m.datapath.AttachLXC(e.PeerIf, e.Index, bpf.SandboxEnd)
		if errors.Is(err, bpf.ErrNoTCX) {
			m.noTCX = true
			return nil
		}
		return err
	}
	attached, err := m.attachInside(e)
	if err == nil && !attached {
		m.awaitDevice(e)
	}
	return err
}

// attachInside attaches the programs to a slave if it has arrived in its sandbox.
func (m *Manager) attachInside(e *Endpoint) (bool, error) {
	dev, err := m.links.OwnInside(e.Sandbox, e.ID)
	if errors.Is(err, link.ErrNoNetns) || errors.Is(err, link.ErrNoDevice) {
		return false, nil // on its way in or out
	}
	if err != nil {
		return false, err
	}
	return true, m.links.Do(e.Sandbox, func() error { return m.attachDevice(e.PeerIf, dev, bpf.SandboxEnd) })
}

// awaitDevice attaches the programs as soon as the engine has moved the slave into its sandbox, unless the
// endpoint leaves before.
func (m *Manager) awaitDevice(e *Endpoint) {
	id := e.ID
	m.waitFor(waiting{id, deviceIn}, e.Sandbox, func(ctx context.Context) (bool, error) { return m.arrived(ctx, id) })
}

// arrived attaches the programs of a slave that has arrived, and tells whether there is nothing to wait for.
func (m *Manager) arrived(ctx context.Context, id string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.endpoints[id]
	if ctx.Err() != nil || e == nil {
		return true, nil // it left while we looked
	}
	attached, err := m.attachInside(e)
	if err != nil || !attached {
		return false, err
	}
	delete(m.waiting, waiting{id, deviceIn})
	return true, nil
}

// guardNetwork gives the network's own devices their programs; unguardNetwork takes them away.
func (m *Manager) guardNetwork(n *Network) error {
	via := 0
	for _, g := range m.mode(n).guards(n) {
		dev, err := m.links.Find(g.name)
		if err != nil {
			return err
		}
		if g.end == bpf.HostSlave {
			via = dev.Index
		}
		if g.end != bpf.UplinkEnd {
			if err := m.putGuard(n, dev, via); err != nil {
				return err
			}
		}
		if err := m.attachDevice(g.name, dev, g.end); err != nil {
			return fmt.Errorf("guard the network %s: %w", n.ID, err)
		}
	}
	return nil
}

// putGuard describes the host's slave, or its private parent, to the programs.
func (m *Manager) putGuard(n *Network, dev link.Device, via int) error {
	iface := bpf.Interface{
		IfIndex: dev.Index, Network: n.Number, Strict: true, MAC: dev.MAC, Via: via, Private: n.Options.Parent == "",
	}
	if iface.Private && m.mode(n).leadsOut(n) {
		iface.Egress, iface.Masq4, iface.Masq6 = true, n.masquerades(false), n.masquerades(true)
		if err := m.links.Route(dev.Name); err != nil {
			return err
		}
	}
	for _, gw := range n.gateways() {
		if !iface.Private {
			break // a router of the LAN
		}
		if gw.Addr().Is4() && !iface.Gateway4.IsValid() {
			iface.Gateway4 = gw.Addr()
		} else if gw.Addr().Is6() && !iface.Gateway6.IsValid() {
			iface.Gateway6 = gw.Addr()
		}
	}
	return m.datapath.PutInterface(iface)
}

func (m *Manager) unguardNetwork(n *Network) error {
	if n.Off() {
		return nil
	}
	for _, g := range m.mode(n).guards(n) {
		if g.end == bpf.UplinkEnd {
			if err := m.unguardParent(n, g.name); err != nil {
				return err
			}
			continue
		}
		dev, err := m.links.Find(g.name)
		switch {
		case err == nil:
			if err := m.datapath.DeleteInterface(dev.Index); err != nil {
				return err
			}
		case !errors.Is(err, link.ErrNoDevice):
			return err // whose index must not be lost
		}
		if err := m.datapath.DetachLXC(g.name); err != nil {
			return err
		}
	}
	return nil
}

// unguardParent takes the programs from a parent, unless it is an uplink, too.
func (m *Manager) unguardParent(n *Network, name string) error {
	if _, leadsOut := m.uplinks[name]; leadsOut || m.isParent(name, n) {
		return nil
	}
	return errors.Join(m.datapath.DetachLXC(name), m.links.DetachClsact(name)) // filters also of another process
}

// isParent tells whether a network, other than without, has programs on the device that its slaves share with the host.
func (m *Manager) isParent(name string, without *Network) bool {
	for _, n := range m.networks {
		if n != without && !n.Off() && slices.Contains(m.mode(n).guards(n), guard{name, bpf.UplinkEnd}) {
			return true
		}
	}
	return false
}

// beside tells the datapath which of the host's devices an endpoint's slave is reached by.
func (m *Manager) beside(n *Network, ep *bpf.Endpoint) error {
	for _, g := range m.mode(n).guards(n) {
		if g.end != bpf.HostSlave {
			continue
		}
		dev, err := m.links.Find(g.name)
		if err != nil {
			return fmt.Errorf("reach the endpoint %s: %w", ep.Addr, err)
		}
		ep.Via, ep.HostMAC = dev.Index, dev.MAC
	}
	if n.Options.Parent == "" {
		return nil
	}
	dev, err := m.links.Find(n.Options.Parent)
	if err != nil {
		return fmt.Errorf("reach the endpoint %s: %w", ep.Addr, err)
	}
	ep.Parent = dev.Index
	return nil
}
