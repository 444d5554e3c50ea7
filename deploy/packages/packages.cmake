# SPDX-License-Identifier: Apache-2.0
# The Debian packages that cpack makes of an installation below /usr (preset "package"): each
# component of install() is one package.  Dependencies on other people's libraries are what
# dpkg-shlibdeps finds; descriptions, maintainer scripts and conffiles stand in this folder.
set(packages ${CMAKE_CURRENT_LIST_DIR})
set(version ${PROJECT_VERSION})

# Policy wants both files in each package; a change log that is compressed without a time.
find_program(GZIP gzip REQUIRED)
set(changelog ${CMAKE_BINARY_DIR}/changelog.gz)
add_custom_command(OUTPUT ${changelog} DEPENDS ${packages}/changelog
    COMMAND ${GZIP} -9nc ${packages}/changelog > ${changelog} VERBATIM)
add_custom_target(changelog ALL DEPENDS ${changelog})

# install_man(COMPONENT PAGE…): manual pages, compressed.
function(install_man component)
    foreach(page IN LISTS ARGN)
        string(REGEX MATCH "[0-9]$" section ${page})
        set(compressed ${CMAKE_CURRENT_BINARY_DIR}/${page}.gz)
        add_custom_command(OUTPUT ${compressed} DEPENDS ${page} VERBATIM
            COMMAND ${GZIP} -9nc ${CMAKE_CURRENT_SOURCE_DIR}/${page} > ${compressed})
        add_custom_target(${page} ALL DEPENDS ${compressed})
        install(FILES ${compressed} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section}
                COMPONENT ${component})
    endforeach()
endfunction()

foreach(package IN ITEMS cairn-server cairn libcairn0 libcairn-dev)
    install(FILES ${packages}/copyright ${changelog}
            DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/${package} COMPONENT ${package})
endforeach()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME cairn)
set(CPACK_PACKAGE_VENDOR Cairn)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "virtual disks as chains of QCOW2 layers over HTTP")
set(CPACK_PACKAGE_CONTACT "Cairn maintainers <maintainers@cairn.example.org>")
set(CPACK_COMPONENTS_ALL cairn-server cairn libcairn0 libcairn-dev)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX ${CMAKE_INSTALL_PREFIX})
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${CMAKE_LIBRARY_OUTPUT_DIRECTORY})
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)

# package(NAME SECTION DESCRIPTION [DEPENDENCY]…): cpack's variables for one component.
function(package name section description)
    string(TOUPPER ${name} upper)
    list(JOIN ARGN ", " depends)
    file(GLOB control ${packages}/${name}/*)
    foreach(field IN ITEMS "NAME ${name}" "SECTION ${section}" "DEPENDS ${depends}"
                           "CONTROL_EXTRA ${control}")
        string(REGEX MATCH "^([^ ]+) (.*)$" _ "${field}")
        set(CPACK_DEBIAN_${upper}_PACKAGE_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}" PARENT_SCOPE)
    endforeach()
    set(CPACK_DEBIAN_${upper}_DESCRIPTION "${description}" PARENT_SCOPE)
endfunction()

package(cairn-server net "cairnd keeps virtual-disk snapshots as chains of immutable QCOW2 layers. It
speaks the OCI distribution protocol, so that registry tools can carry the
disks, and shows each disk as one range of bytes, however many layers it has.

This package has the service and its systemd unit."
    adduser "init-system-helpers (>= 1.54)")
package(cairn utils "The cairn command publishes virtual disks with a Cairn service, attaches them
over NBD for QEMU and libvirt, and snapshots them while they run.

This package has the command, the nbdkit plugin, and a systemd unit for each
disk that is to stay attached."
    "libcairn0 (= ${version})" nbdkit adduser "init-system-helpers (>= 1.54)")
package(libcairn0 libs "Opens disks that are chains of QCOW2 layers behind a Cairn service: reads,
writes, snapshots, pushes and pulls.

This package has the shared library.")
package(libcairn-dev libdevel "Opens disks that are chains of QCOW2 layers behind a Cairn service: reads,
writes, snapshots, pushes and pulls.

This package has the header files, the manual page and what pkg-config reads."
    "libcairn0 (= ${version})")
include(CPack)
