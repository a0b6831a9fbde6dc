// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/mustang-net/mustang/state"
)

// keyOrphaned is set while endpoints go on that the state does not know, because it was lost.
const keyOrphaned = "orphaned"

// Orphaned tells whether endpoints of a lost state go on working. Until their containers have ended,
// nothing that the state does not explain may be removed.
func (m *Manager) Orphaned() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.orphaned
}

// loadOrphaned reads whether the state was lost, and whether this one has ever been used.
func (m *Manager) loadOrphaned(tx state.Tx) error {
	var last uint32
	used, err := tx.Get(bucketCounter, "network", &last)
	if err != nil {
		return err
	}
	m.fresh = !used && len(m.networks) == 0 && len(m.endpoints) == 0
	_, err = tx.Get(bucketCounter, keyOrphaned, &m.orphaned)
	return err
}

// findOrphans looks for devices of ours when the state is new. Numbers of networks go on after those that
// the maps have, so that no new network gets the members of an old one.
func (m *Manager) findOrphans() error {
	if !m.fresh {
		return nil
	}
	m.fresh = false
	owned, err := m.links.Owned()
	if err != nil {
		return err
	}
	inside, err := m.links.InSandboxes() // slaves of which there is nothing on the host
	if err != nil || len(owned)+len(inside) == 0 {
		return err
	}
	sandboxes, err := m.datapath.Sandboxes()
	if err != nil {
		return err
	}
	var last uint32
	for _, networks := range sandboxes {
		for _, number := range networks {
			last = max(last, number)
		}
	}
	m.orphaned = true
	return m.store.Update(func(tx state.Tx) error {
		if err := tx.Put(bucketCounter, "network", last); err != nil {
			return err
		}
		return tx.Put(bucketCounter, keyOrphaned, true)
	})
}

// tellOfOrphans says at a start what the state does not know: a command without a daemon, of which nobody reads a log, may have found it.
func (m *Manager) tellOfOrphans() error {
	inside, err := m.inLostSandboxes()
	m.log.Errorf("the state was lost: %d endpoints that it does not know go on working. "+
		"Make their networks and containers anew to manage them again", len(inside))
	return err
}

// inLostSandboxes are the endpoints in sandboxes that the state does not know, by id, with the addresses of slaves.
func (m *Manager) inLostSandboxes() (map[string][]netip.Prefix, error) {
	inside, err := m.links.InSandboxes()
	maps.DeleteFunc(inside, func(id string, _ []netip.Prefix) bool { return m.endpoints[id] != nil })
	return inside, err
}

// collectOrphans removes the devices of a lost state that are in no sandbox and that the engine does not know either. What a network needs
// stays as long as any of the lost endpoints is in a sandbox: which of them are on it nobody knows.
func (m *Manager) collectOrphans(known map[string]map[string]bool, missing map[string]bool) error {
	owned, err := m.links.Owned()
	if err != nil {
		return err
	}
	inside, err := m.inLostSandboxes()
	if err != nil {
		return err
	}
	left := len(inside)
	var errs []error
	for name, owner := range owned {
		_, used := inside[owner]
		if used || m.endpoints[owner] != nil || m.networks[owner] != nil || !isEndpoints(name, owner) && len(inside) > 0 {
			continue
		}
		if engineKnows(known, owner) || !m.missing[owner] {
			left++
			missing[owner] = !engineKnows(known, owner)
			continue
		}
		errs = append(errs, m.links.Delete(name, owner), m.datapath.DetachLXC(name))
	}
	if err := errors.Join(errs...); err != nil || left > 0 {
		return err
	}
	return m.endOrphans()
}

// isEndpoints tells whether a device is an endpoint's, and not a network's, by the name that it gets.
func isEndpoints(name, owner string) bool {
	return len(owner) >= idBytes && (name == hostName(owner) || name == peerName(owner))
}

// SweepOrphans removes what a lost state has left once none of its endpoints is in a sandbox any more. An engine need not be
// asked: it knows of nothing then that goes on.
func (m *Manager) SweepOrphans() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.orphaned {
		return nil
	}
	inside, err := m.inLostSandboxes()
	if err != nil || len(inside) > 0 {
		return err
	}
	return m.endOrphans()
}

func (m *Manager) endOrphans() error {
	if err := m.remove(bucketCounter, keyOrphaned); err != nil {
		return fmt.Errorf("record that the lost state's endpoints are gone: %w", err)
	}
	m.orphaned = false
	return m.prune()
}

// removeOrphan removes what is on the host of an endpoint that a lost state knew.
func (m *Manager) removeOrphan(id string) error {
	if !m.orphaned || len(id) < idBytes {
		return nil
	}
	var errs []error
	if dev, err := m.links.Find(hostName(id)); err == nil {
		endpoints, err := m.datapath.Endpoints()
		errs = append(errs, err)
		for _, e := range endpoints {
			if e.IfIndex == dev.Index {
				errs = append(errs, m.datapath.DeleteEndpoint(e.Addr))
			}
		}
		errs = append(errs, m.datapath.DeleteInterface(dev.Index))
	}
	for _, name := range []string{hostName(id), peerName(id)} {
		errs = append(errs, m.links.Delete(name, id), m.datapath.DetachLXC(name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the endpoint %s, which the state does not know: %w", id, err)
	}
	return nil
}

// checkLost refuses subnets in which slaves of a lost state have addresses: the next one would get the same.
func (m *Manager) checkLost(n *Network) error {
	if !m.orphaned {
		return nil
	}
	inside, err := m.inLostSandboxes()
	if err != nil {
		return err
	}
	for _, addrs := range inside {
		for _, a := range addrs {
			if s, ok := n.subnetOf(a.Addr()); ok {
				return fmt.Errorf("subnet %s: a container has the address %s of it, whose state was lost: end that one first, or choose another subnet",
					s.Pool, a.Addr())
			}
		}
	}
	return nil
}

// engineKnows tells whether the engine has a network or an endpoint of this id.
func engineKnows(known map[string]map[string]bool, id string) bool {
	if _, ok := known[id]; ok {
		return true
	}
	for _, endpoints := range known {
		if endpoints[id] {
			return true
		}
	}
	return false
}
