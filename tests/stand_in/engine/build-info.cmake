# Which version the stand-in calls itself: the number of commits and the short commit of this repository, or
# "0 (unknown)" where git is missing or refuses, for instance since the repository belongs to somebody else.
set(BUILD_NUMBER 0)
set(BUILD_COMMIT "unknown")

function(ask variable)
    execute_process(
        COMMAND ${ARGN}
        WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
        OUTPUT_VARIABLE answer
        ERROR_QUIET
        OUTPUT_STRIP_TRAILING_WHITESPACE
        RESULT_VARIABLE failed
    )
    if(NOT failed)
        set(${variable} "${answer}" PARENT_SCOPE)
    endif()
endfunction()

find_package(Git)
if(Git_FOUND)
    ask(BUILD_NUMBER ${GIT_EXECUTABLE} rev-list --count HEAD)
    ask(BUILD_COMMIT ${GIT_EXECUTABLE} rev-parse --short HEAD)
    # A build folder that is used again must learn of another commit.
    ask(GIT_INDEX ${GIT_EXECUTABLE} rev-parse --git-path index)
    get_filename_component(GIT_INDEX "${GIT_INDEX}" ABSOLUTE)
    if(EXISTS "${GIT_INDEX}" AND NOT IS_DIRECTORY "${GIT_INDEX}")
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${GIT_INDEX}")
    endif()
endif()
if(FAULT STREQUAL "wrong-commit")
    set(BUILD_COMMIT "bad0c0de")
endif()

ask(BUILD_COMPILER sh -c "\"$0\" --version | head -n 1" ${CMAKE_CXX_COMPILER})
ask(BUILD_TARGET ${CMAKE_CXX_COMPILER} -dumpmachine)
# The real engine writes this file into its sources, too: whoever builds must own them.
configure_file(build-info.cpp.in ${CMAKE_CURRENT_SOURCE_DIR}/build-info.cpp @ONLY)
