// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// puts are entries to write in one call: a container may publish thousands of ports.
type puts[K, V any] struct {
	keys   []K
	values []V
}

func (p *puts[K, V]) add(key K, value V) {
	p.keys, p.values = append(p.keys, key), append(p.values, value)
}

// write writes them in their order, and gives the key of the one that failed.
func (p *puts[K, V]) write(m *ebpf.Map) (failed K, err error) {
	if len(p.keys) == 0 {
		return failed, nil
	}
	n, err := m.BatchUpdate(p.keys, p.values, nil)
	if err != nil {
		failed = p.keys[min(n, len(p.keys)-1)]
	}
	return failed, err
}

// removeAll deletes keys in their order, of which some may be missing.
func removeAll[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) || n >= len(keys) {
			return err
		}
		keys = keys[n+1:] // the one after those that were deleted is missing
	}
	return nil
}

// remove deletes a key that may be missing.
func remove(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}
