// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"io"
	"net/netip"

	"github.com/sirupsen/logrus"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/drift"
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// Stage is what [Manager.Rehearse] plays on: it looks like the kernel, and tells of what would change.
type Stage struct {
	Links    Links
	Datapath Datapath
	Tables   Tables
	Resolver Resolver // nil without a daemon
	Ports    Ports    // nil without a daemon
}

// Rehearse does what [Manager.Restore] does, on a stage: what a start would change is told there, and nothing is
// changed. That an error is [drift.ErrReported] is no error.
func (m *Manager) Rehearse(s Stage) error {
	m.mu.Lock()
	defer m.mu.Unlock() // else a container that comes meanwhile would be a difference
	log := logrus.New()
	log.SetOutput(io.Discard)
	understudy := &Manager{
		store: nowhere{}, links: s.Links, datapath: s.Datapath, services: quiet{m.services, m.networks}, tables: s.Tables,
		resolver: s.Resolver, ports: s.Ports, pools: m.pools, log: log, uplinkNames: m.uplinkNames,
		uplinks: map[string]bpf.Uplink{}, hostAddrs: map[netip.Addr]bool{}, networks: map[string]*Network{},
		endpoints: map[string]*Endpoint{}, waiting: map[waiting]context.CancelFunc{}, noTCX: m.noTCX, orphaned: m.orphaned,
		rehearses: true,
	}
	for id, n := range m.networks {
		twin := *n
		understudy.networks[id] = &twin
	}
	for id, e := range m.endpoints {
		twin := *e
		understudy.endpoints[id] = &twin
	}
	return unreported(understudy.Restore())
}

// unreported takes out of an error what was told of as a difference.
func unreported(err error) error {
	if several, ok := err.(interface{ Unwrap() []error }); ok {
		var left []error
		for _, one := range several.Unwrap() {
			left = append(left, unreported(one))
		}
		return errors.Join(left...)
	}
	if errors.Is(err, drift.ErrReported) {
		return nil
	}
	return err
}

// nowhere is a store that keeps nothing.
type nowhere struct{}

func (nowhere) View(func(state.Tx) error) error   { return nil }
func (nowhere) Update(func(state.Tx) error) error { return nil }
func (nowhere) Close() error                      { return nil }

// quiet are services that are told nothing.
type quiet struct {
	Services
	networks map[string]*Network
}

func (q quiet) AddNetwork(n service.Network) ([]netip.Prefix, error) {
	return q.networks[n.ID].VIPs, nil
}
func (quiet) RemoveNetwork(string) error         { return nil }
func (quiet) PutEndpoint(service.Endpoint) error { return nil }
func (quiet) RemoveEndpoint(string) error        { return nil }
func (quiet) Gone(string)                        {}
func (quiet) Unpublish(string) error             { return nil }
