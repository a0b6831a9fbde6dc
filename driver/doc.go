// SPDX-License-Identifier: Apache-2.0

// Package driver creates and removes networks and endpoints, whatever protocol asked for it.
package driver
