// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// newRadio is HWSIM_CMD_NEW_RADIO of linux/drivers/net/wireless/virtual/mac80211_hwsim.h.
const newRadio = 4

// radio makes a wireless device that is simulated, called wlan0, on the host: `radio`. It goes when the module mac80211_hwsim goes.
// The module's own devices are in the first network namespace, where a fake host cannot take them from.
func radio(_ *scenario, dir string, _ []string) result {
	if r := run(dir, "modprobe", "mac80211_hwsim", "radios=0"); r.err != nil {
		return r
	}
	family, err := netlink.GenlFamilyGet("MAC80211_HWSIM")
	if err != nil {
		return result{err: err}
	}
	request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	request.AddData(&nl.Genlmsg{Command: newRadio, Version: 1})
	_, err = request.Execute(unix.NETLINK_GENERIC, 0)
	return result{err: err}
}
