// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/nft"
	"github.com/mustang-net/mustang/service"
)

// serviceMaps writes services to the eBPF maps, and from there to the tables of sandboxes that have no eBPF.
type serviceMaps struct {
	service.Maps
	tables *nft.Tables
}

func (m serviceMaps) PutService(s bpf.Service) error {
	return errors.Join(m.Maps.PutService(s), m.tables.PutService(s))
}

func (m serviceMaps) DeleteService(f bpf.Frontend) error {
	return errors.Join(m.Maps.DeleteService(f), m.tables.DeleteService(f))
}

// Flush writes what changed to the tables.
func (m serviceMaps) Flush() error { return m.tables.Flush() }

func (m serviceMaps) PutBackend(b bpf.Backend) error {
	return errors.Join(m.Maps.PutBackend(b), m.tables.PutBackend(b))
}

func (m serviceMaps) DeleteBackend(id uint32) error {
	// first, as the tables learn from the maps what it was
	return errors.Join(m.tables.DeleteBackend(id), m.Maps.DeleteBackend(id))
}
