// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"maps"

	"github.com/mustang-net/mustang/driver/link"
	"github.com/mustang-net/mustang/state"
)

// keyOrphaned is set while endpoints go on that the state does not know, because it was lost.
const keyOrphaned = "orphaned"

// Orphaned tells whether endpoints of a lost state go on working, as far as is known. Until their containers have ended,
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
// the maps have, so that no new network gets the members of an old one. After an error there may be some, and the next call looks again.
func (m *Manager) findOrphans() error {
	if !m.fresh {
		return nil
	}
	found, err := m.lookForOrphans()
	m.orphaned = m.orphaned || found || err != nil
	if err != nil {
		return fmt.Errorf("look for endpoints of a lost state, which is tried again: %w", err)
	}
	m.fresh = false
	return nil
}

func (m *Manager) lookForOrphans() (found bool, err error) {
	owned, err := m.links.Owned()
	if err != nil {
		return false, err
	}
	inside, err := m.links.InSandboxes() // slaves of which there is nothing on the host
	if err != nil || len(owned)+len(inside) == 0 {
		return false, err
	}
	sandboxes, err := m.datapath.Sandboxes()
	if err != nil {
		return false, err
	}
	var last uint32
	for _, networks := range sandboxes {
		for _, number := range networks {
			last = max(last, number)
		}
	}
	return true, m.store.Update(func(tx state.Tx) error {
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

// inLostSandboxes are the endpoints in sandboxes that the state does not know, by id.
func (m *Manager) inLostSandboxes() (map[string]link.InSandbox, error) {
	inside, err := m.links.InSandboxes()
	return m.lost(inside), err
}

// lost takes out what the state knows.
func (m *Manager) lost(inside map[string]link.InSandbox) map[string]link.InSandbox {
	maps.DeleteFunc(inside, func(id string, _ link.InSandbox) bool { return m.endpoints[id] != nil })
	return inside
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
// asked: it knows of nothing then that goes on. After an error the next call goes on.
func (m *Manager) SweepOrphans() error {
	if !m.Orphaned() {
		return nil
	}
	inside, err := m.links.InSandboxes() // takes its time, in which others may come and go
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.findOrphans(); err != nil || !m.orphaned || len(m.lost(inside)) > 0 {
		return err
	}
	if inside, err = m.inLostSandboxes(); err != nil || len(inside) > 0 { // one may have come out of a namespace that was looked at later
		return err
	}
	return m.endOrphans()
}

// endOrphans removes what nothing needs any more, and then the mark that keeps it.
func (m *Manager) endOrphans() error {
	if err := m.prune(); err != nil {
		return err
	}
	if err := m.remove(bucketCounter, keyOrphaned); err != nil {
		return fmt.Errorf("record that the lost state's endpoints are gone: %w", err)
	}
	m.orphaned = false
	return nil
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
	if err := m.findOrphans(); err != nil || !m.orphaned {
		return err
	}
	inside, err := m.inLostSandboxes()
	if err != nil {
		return err
	}
	for _, slave := range inside {
		for _, a := range slave.Addrs {
			if s, ok := n.subnetOf(a.Addr()); ok {
				return conflict{fmt.Errorf("subnet %s: the container in the network namespace %s has the address %s of it, and its state was lost: "+
					"end that one first, or choose another subnet", s.Pool, slave.Path, a.Addr())}
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
