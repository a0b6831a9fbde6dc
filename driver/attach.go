// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"

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
	return m.attachDevice(e.HostIf, dev, end)
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

// guardNetwork gives the network's own device its programs; unguardNetwork takes them away.
func (m *Manager) guardNetwork(n *Network) error {
	name := m.mode(n).guard(n)
	if name == "" {
		return nil
	}
	dev, err := m.links.Find(name)
	if err != nil {
		return err
	}
	iface := bpf.Interface{IfIndex: dev.Index, Network: n.Number, Strict: true, MAC: dev.MAC}
	if err := m.datapath.PutInterface(iface); err != nil {
		return err
	}
	if err := m.attachDevice(name, dev, bpf.HostSlave); err != nil {
		return fmt.Errorf("guard the network %s: %w", n.ID, err)
	}
	return nil
}

func (m *Manager) unguardNetwork(n *Network) error {
	name := m.mode(n).guard(n)
	if name == "" || n.Off() {
		return nil
	}
	dev, err := m.links.Find(name)
	switch {
	case err == nil:
		if err := m.datapath.DeleteInterface(dev.Index); err != nil {
			return err
		}
	case !errors.Is(err, link.ErrNoDevice):
		return err // whose index must not be lost
	}
	return m.datapath.DetachLXC(name)
}
