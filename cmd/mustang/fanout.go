// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/nft"
)

// serviceMaps writes services to the eBPF maps, and from there to the tables of sandboxes that have no eBPF.
type serviceMaps struct {
	*bpf.Datapath
	tables *nft.Tables
}

func (m serviceMaps) PutService(s bpf.Service) error {
	return errors.Join(m.Datapath.PutService(s), m.tables.PutService(s))
}

func (m serviceMaps) DeleteService(f bpf.Frontend) error {
	return errors.Join(m.Datapath.DeleteService(f), m.tables.DeleteService(f))
}

// PutServices writes many services.
func (m serviceMaps) PutServices(list []bpf.Service, had []bpf.Held) error {
	err := m.Datapath.PutServices(list, had)
	for _, s := range list {
		err = errors.Join(err, m.tables.PutService(s))
	}
	return err
}

// DeleteServices removes many services.
func (m serviceMaps) DeleteServices(list []bpf.Frontend, had []bpf.Held) error {
	err := m.Datapath.DeleteServices(list, had)
	for _, f := range list {
		err = errors.Join(err, m.tables.DeleteService(f))
	}
	return err
}

// Flush writes what changed to the tables.
func (m serviceMaps) Flush() error { return m.tables.Flush() }

func (m serviceMaps) PutBackend(b bpf.Backend) error {
	return errors.Join(m.Datapath.PutBackend(b), m.tables.PutBackend(b))
}

func (m serviceMaps) DeleteBackend(id uint32) error {
	// first, as the tables learn from the maps what it was
	return errors.Join(m.tables.DeleteBackend(id), m.Datapath.DeleteBackend(id))
}
