// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"

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
	if err != nil || len(owned) == 0 {
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
	m.log.Errorf("the state was lost: %d devices of endpoints that it does not know go on working. "+
		"Make their networks and containers anew to manage them again", len(owned))
	return m.store.Update(func(tx state.Tx) error {
		if err := tx.Put(bucketCounter, "network", last); err != nil {
			return err
		}
		return tx.Put(bucketCounter, keyOrphaned, true)
	})
}

// collectOrphans removes the devices of a lost state that the engine does not know either, and, when the
// last is gone, everything else that the state does not explain.
func (m *Manager) collectOrphans(known map[string]map[string]bool, missing map[string]bool) error {
	owned, err := m.links.Owned()
	if err != nil {
		return err
	}
	left := 0
	var errs []error
	for name, owner := range owned {
		if m.endpoints[owner] != nil || m.networks[owner] != nil {
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
	if err := m.remove(bucketCounter, keyOrphaned); err != nil {
		return fmt.Errorf("record that the lost state's endpoints are gone: %w", err)
	}
	m.orphaned = false
	return m.prune()
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
