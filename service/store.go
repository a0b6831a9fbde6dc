// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/mustang-net/mustang/state"
)

// The buckets of this package.
const (
	bucketHand     = "service.hand"     // id, ten digits → handRecord
	bucketNetworks = "service.networks" // Network.ID → networkRecord
	bucketNames    = "service.names"    // Network.ID/name → nameRecord
	bucketDrained  = "service.drained"  // Container.ID → true
	bucketIDs      = "service.ids"      // "backends" → first backend id that was never used
)

const keyBackends = "backends"

// markStep is how many backend ids one transaction reserves. Ids come from the maps after a restart;
// the mark is there so that the id of a backend that is gone never means another one to a conntrack
// or affinity entry that still names it.
const markStep = 4096

// maxBackendsPerChange is how many backend ids a change other than Add and Apply may take.
const maxBackendsPerChange = 256

type handRecord struct {
	ID   uint32 `json:"id"`
	Spec Spec   `json:"spec"`
}

type networkRecord struct {
	Network Network        `json:"network"`
	Blocks  []netip.Prefix `json:"blocks"`
}

type nameRecord struct {
	ID     uint32     `json:"id"`
	IPv4   netip.Addr `json:"ipv4,omitzero"`
	IPv6   netip.Addr `json:"ipv6,omitzero"`
	Source Source     `json:"source"`
}

// nameKey is what makes the service of a name unique.
type nameKey struct{ network, name string }

func (k nameKey) record() string { return k.network + "/" + k.name }

func handKey(id uint32) string { return fmt.Sprintf("%010d", id) }

// load reads everything this package keeps in the store.
func (m *Manager) load() error {
	return m.store.View(func(tx state.Tx) error {
		err := tx.Each(bucketHand, func(_ string, decode func(any) error) error {
			var r handRecord
			if err := decode(&r); err != nil {
				return err
			}
			m.useID(r.ID)
			m.insertHand(&handService{id: r.ID, Spec: r.Spec})
			return nil
		})
		if err != nil {
			return err
		}
		err = tx.Each(bucketNetworks, func(_ string, decode func(any) error) error {
			var r networkRecord
			if err := decode(&r); err != nil {
				return err
			}
			m.networks[r.Network.ID] = newNetwork(r.Network, r.Blocks)
			m.passBlocks(r.Blocks)
			return nil
		})
		if err != nil {
			return err
		}
		if err := tx.Each(bucketNames, m.loadName); err != nil {
			return err
		}
		err = tx.Each(bucketDrained, func(key string, _ func(any) error) error {
			m.drained[key] = true
			return nil
		})
		if err != nil {
			return err
		}
		_, err = tx.Get(bucketIDs, keyBackends, &m.reserved)
		m.backends.next = max(m.backends.next, m.reserved)
		return err
	})
}

// loadName reads the service of a name, whose network has been read before.
func (m *Manager) loadName(key string, decode func(any) error) error {
	cut := strings.LastIndexByte(key, '/')
	if cut < 0 || m.networks[key[:cut]] == nil {
		return nil
	}
	var r nameRecord
	if err := decode(&r); err != nil {
		return err
	}
	m.useID(r.ID)
	n := m.networks[key[:cut]]
	s := &named{id: r.ID, name: key[cut+1:], net: n, source: r.Source, vips: [2]netip.Addr{r.IPv4, r.IPv6}}
	n.names[s.name] = s
	for _, vip := range s.vips {
		if vip.IsValid() {
			m.nameVIPs[vip] = s
		}
	}
	return nil
}

// commit makes a change durable in one transaction: what fn writes, the services of names that came,
// moved or went, and the reservation of backends ids if the change needs more. What concerns names and
// ids is written by a later commit if this one fails.
func (m *Manager) commit(backends int, fn func(state.Tx) error) error {
	mark := m.reserved
	if need := m.backends.next + uint32(backends) + maxBackendsPerChange; need > mark && (backends > 0 || len(m.dirty) > 0) {
		mark = need + markStep
	}
	if fn == nil && mark == m.reserved && len(m.unsaved) == 0 {
		return nil
	}
	err := m.store.Update(func(tx state.Tx) error {
		if mark != m.reserved {
			if err := tx.Put(bucketIDs, keyBackends, mark); err != nil {
				return err
			}
		}
		for k := range m.unsaved {
			if err := m.saveName(tx, k); err != nil {
				return err
			}
		}
		if fn == nil {
			return nil
		}
		return fn(tx)
	})
	if err != nil {
		return fmt.Errorf("save the services: %w", err)
	}
	m.reserved = mark
	clear(m.unsaved)
	return nil
}

func (m *Manager) saveName(tx state.Tx, k nameKey) error {
	n := m.networks[k.network]
	if n == nil || n.names[k.name] == nil {
		return tx.Delete(bucketNames, k.record())
	}
	s := n.names[k.name]
	return tx.Put(bucketNames, k.record(), nameRecord{ID: s.id, IPv4: s.vips[0], IPv6: s.vips[1], Source: s.source})
}
