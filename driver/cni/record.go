// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// The state's buckets.
const (
	bucketNetworks    = "cni.networks"    // by name
	bucketAttachments = "cni.attachments" // by endpoint id
)

// attachment is one as the state keeps it. It is never changed, but replaced.
type attachment struct {
	Key
	Sandbox string   `json:"sandbox"`
	Cookie  uint64   `json:"cookie"` // netns cookie of the sandbox
	Aliases []string `json:"aliases,omitempty"`
	// Leaving says that the runtime has ended it while the container was still running.
	Leaving bool `json:"leaving,omitempty"`
}

func (m *Manager) load(tx state.Tx) error {
	err := tx.Each(bucketNetworks, func(name string, decode func(any) error) error {
		n := &network{}
		m.networks[name] = n
		return decode(&n.Network)
	})
	if err != nil {
		return err
	}
	return tx.Each(bucketAttachments, func(_ string, decode func(any) error) error {
		a := &attachment{}
		if err := decode(a); err != nil {
			return err
		}
		m.attached[a.Key] = a
		return nil
	})
}

func (m *Manager) get(k Key) *attachment {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attached[k]
}

func (m *Manager) put(a *attachment) error {
	err := m.Store.Update(func(tx state.Tx) error { return tx.Put(bucketAttachments, a.endpoint(), a) })
	if err != nil {
		return fmt.Errorf("record %s of container %s: %w", a.IfName, a.Container, err)
	}
	m.mu.Lock()
	m.attached[a.Key] = a
	m.mu.Unlock()
	return nil
}

func (m *Manager) forget(k Key) error {
	if m.get(k) == nil {
		return nil
	}
	err := m.Store.Update(func(tx state.Tx) error { return tx.Delete(bucketAttachments, k.endpoint()) })
	if err != nil {
		return fmt.Errorf("forget %s of container %s: %w", k.IfName, k.Container, err)
	}
	m.mu.Lock()
	delete(m.attached, k)
	m.mu.Unlock()
	m.tellContainer(k.Container)
	return nil
}

// keysOf are the attachments of a network, of all networks without a name.
func (m *Manager) keysOf(network string) (keys []Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := range m.attached {
		if network == "" || k.Network == network {
			keys = append(keys, k)
		}
	}
	return keys
}

// tellContainer tells the services which endpoints are a container's, and by which names they go.
func (m *Manager) tellContainer(id string) {
	c := service.Container{
		ID: id, Name: nameOf(id), Phase: service.PhaseReady, Source: service.SourceNerdctl, Aliases: map[string][]string{},
	}
	m.mu.Lock()
	for k, a := range m.attached {
		if k.Container == id && !a.Leaving {
			c.Aliases[k.endpoint()] = slices.Clone(a.Aliases)
		}
	}
	m.mu.Unlock()
	if len(c.Aliases) == 0 {
		m.Containers.RemoveContainer(id)
		return
	}
	m.Containers.PutContainer(c)
}

// nameOf shortens an id as runtimes show it: containerd's clients put their namespace before it.
func nameOf(id string) string {
	const whole, short = 64, 12
	if i := strings.LastIndexByte(id, '-'); i >= 0 && len(id)-i-1 == whole {
		id = id[i+1:]
	}
	if len(id) == whole {
		id = id[:short]
	}
	return id
}
