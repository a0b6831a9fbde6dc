// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// RemoveStrays removes the slots and sources that no entry of a service counts: those of a writer that was killed between them
// and the entry. Nobody else may write services meanwhile.
func (d *Datapath) RemoveStrays() error {
	m := d.maps["services"]
	restricted := map[uint32]bool{} // ids of services
	err := removeWhere(m, func(key mstServiceKey, value mstService) bool {
		if key.Slot == 0 {
			if value.Flags&svcRestricted != 0 {
				restricted[value.Id] = true
			}
			return false
		}
		var head mstService
		at := key
		at.Slot = 0
		if err := m.Lookup(&at, &head); err != nil {
			return errors.Is(err, ebpf.ErrKeyNotExist)
		}
		return key.Slot > head.Count+head.Reserve
	})
	if err != nil {
		return fmt.Errorf("remove slots that no service counts: %w", err)
	}
	all, err := d.sources.read(d.maps["sources"])
	if err != nil {
		return err
	}
	for _, id := range all.ids() {
		if restricted[id] {
			continue
		}
		if err := all.keep(d.maps["sources"], id, nil); err != nil {
			return fmt.Errorf("remove sources of no service: %w", err)
		}
	}
	return nil
}
