// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/drift"
)

// Look reads the maps anew and tells what [Manager.Reconcile] would change in them.
func (m *Manager) Look(report drift.Report) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.observe(); err != nil {
		return err
	}
	dirty := m.dirty
	m.dirty = map[bpf.Frontend]struct{}{}
	m.markAll()
	plans, gone := m.plan()
	m.dirty = dirty
	lacking, needed := map[uint32]bool{}, map[uint32]bool{}
	for _, p := range plans {
		for _, id := range p.backends {
			needed[id] = true
		}
		m.lookAt(p, lacking, report)
		m.backends.release(p.backends)
	}
	for _, f := range gone {
		report.Leftover("mst_services "+text(f), "a service")
	}
	if m.synced {
		m.lookForOrphans(needed, report)
	}
	return nil
}

func (m *Manager) lookAt(p plan, lacking map[uint32]bool, report drift.Report) {
	f := p.service.Frontend
	for _, id := range p.backends {
		if e := m.backends.byID[id]; !e.written && !lacking[id] {
			lacking[id] = true
			report.Missing(fmt.Sprintf("mst_backends %d", id), "the backend "+e.key.address().String()+" of "+text(f))
		}
	}
	was, there := m.applied[f]
	switch {
	case !there:
		report.Missing("mst_services "+text(f), fmt.Sprintf("service %d with %d slots", p.service.ID, len(p.service.Slots)))
	case was.digest != p.digest:
		report.Differs("mst_services "+text(f), fmt.Sprintf("service %d with the backends %v", p.service.ID, p.service.Slots),
			fmt.Sprintf("service %d with %d slots, or others", was.held.ID, was.held.Slots))
	}
}

// lookForOrphans tells of backends that no service needs.
func (m *Manager) lookForOrphans(needed map[uint32]bool, report drift.Report) {
	for _, id := range m.backends.orphans {
		if e := m.backends.byID[id]; e.refs == 0 && e.written && !needed[id] {
			needed[id] = true // told once
			report.Leftover(fmt.Sprintf("mst_backends %d", id), "the backend "+e.key.address().String())
		}
	}
}
