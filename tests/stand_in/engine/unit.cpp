// Stand-in for the kernels of a real engine: nothing but work for the compiler, some seconds of it.
// CMake compiles this file ten times, each time with another STAND_IN_UNIT.
#include <array>
#include <cstddef>
#include <utility>
#include <variant>

#ifdef STAND_IN_DOES_NOT_COMPILE
#error "stand-in: this commit does not compile"
#endif

template <std::size_t N> struct Block {
    std::array<int, N> values{};
};

template <typename> struct Blocks;
template <std::size_t... N> struct Blocks<std::index_sequence<N...>> {
    using Any = std::variant<Block<N + 1>...>;
};
using AnyBlock = Blocks<std::make_index_sequence<6>>::Any;

// The compiler writes and optimises a function for each of the 6 * 6 * 6 combinations.
template <int Unit> int multiply(const AnyBlock & a, const AnyBlock & b, const AnyBlock & c) {
    return std::visit(
        [](const auto & x, const auto & y, const auto & z) {
            int sum = Unit;
            for (int value : x.values) sum += value;
            for (int value : y.values) sum ^= value;
            for (int value : z.values) sum *= value;
            return sum;
        },
        a, b, c);
}

template int multiply<STAND_IN_UNIT>(const AnyBlock &, const AnyBlock &, const AnyBlock &);
