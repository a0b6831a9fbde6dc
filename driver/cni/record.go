// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"fmt"
	"maps"
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
	Sandbox string            `json:"sandbox"`
	Cookie  uint64            `json:"cookie"` // netns cookie of the sandbox
	BootID  string            `json:"boot_id,omitempty"`
	Aliases []string          `json:"aliases,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"` // of the container, as far as they are of use
	// Leaving says that the runtime has ended it while the container was still running.
	Leaving bool `json:"leaving,omitempty"`
	// Swept says that nothing of it is left but its address of a delegated network, which Collect or Delete give back.
	Swept bool `json:"swept,omitempty"`
}

func (m *Manager) load(tx state.Tx) error {
	err := tx.Each(bucketNetworks, func(name string, decode func(any) error) error {
		n := &network{users: new(int)}
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

// keysOf are the attachments of a network, sweptOf those that were swept.
func (m *Manager) keysOf(network string) []Key  { return m.keysWhere(network, false) }
func (m *Manager) sweptOf(network string) []Key { return m.keysWhere(network, true) }

func (m *Manager) keysWhere(network string, swept bool) (keys []Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, a := range m.attached {
		if k.Network == network && a.Swept == swept {
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
			c.Aliases[k.endpoint()] = a.names()
			c.Labels, c.Name = a.Labels, cmp.Or(a.Labels[labelName], c.Name)
		}
	}
	m.mu.Unlock()
	if len(c.Aliases) == 0 {
		m.Containers.RemoveContainer(id)
		return
	}
	m.Containers.PutContainer(c)
}

// The labels of containers that are of use, besides our own.
const (
	labelOurs    = "mustang."
	labelName    = "nerdctl/name"
	labelService = "com.docker.compose.service"
	labelProject = "com.docker.compose.project"
	labelOneOff  = "com.docker.compose.oneoff" // of `compose run`, which is no replica
)

// labels reads those of a container that are of use. Without an answer the container has no services, but it starts.
func (m *Manager) labels(ctx context.Context, container string) map[string]string {
	all, err := m.Labels(ctx, container)
	if err != nil {
		m.Log.WithError(err).Warn("read the labels of a container, which has no service name without")
	}
	maps.DeleteFunc(all, func(key, _ string) bool {
		return !strings.HasPrefix(key, labelOurs) && !slices.Contains([]string{labelName, labelService, labelProject, labelOneOff, labelState}, key)
	})
	return all
}

// names are the service names that the attachment goes by: aliases that the runtime gave, and of a Compose service its
// name, also with its project's, as nothing else on the host is called.
func (a *attachment) names() []string {
	names := slices.Clone(a.Aliases)
	if service := a.Labels[labelService]; service != "" && !strings.EqualFold(a.Labels[labelOneOff], "true") {
		names = append(names, service)
		if project := a.Labels[labelProject]; project != "" {
			names = append(names, service+"."+project+".mustang")
		}
	}
	return names
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
