// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// What a person does with devices, whose part `mustang bench` plays.

// SetUp sets a device up.
func (Host) SetUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// PlugPlain makes a device a port of a bridge that learns and floods.
func (Host) PlugPlain(port, bridge string) error {
	_, _, err := plug(port, bridge)
	return err
}
